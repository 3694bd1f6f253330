"""What is measured of texts, sets, judges and scores: pure functions over strings and arrays."""

from instructgym.metrics.agreement import (
    PreferenceAccuracy,
    Retest,
    cohen_kappa,
    llmbar_published_kappa,
    llmbar_published_order_kappa,
    order_agreement,
    preference_accuracy,
    test_retest,
)
from instructgym.metrics.compression import compression_ratio
from instructgym.metrics.correlation import kendall, spearman, spearman_interval
from instructgym.metrics.coverage import Coverage, category_coverage, verb_noun, verb_noun_coverage
from instructgym.metrics.diversity import distinct_2, mean_pairwise_distance
from instructgym.metrics.duplicates import Deduplicated, Dropped, deduplicate, keep_best
from instructgym.metrics.faults import has_chatter, leaks_template, refuses, template_markers
from instructgym.metrics.novelsum import novelsum
from instructgym.metrics.ranking import auc
from instructgym.metrics.rouge import homogenisation, max_rouge_l, rouge_l
from instructgym.metrics.self_bleu import self_bleu
from instructgym.metrics.structure import Block, coverage, structured_blocks
from instructgym.metrics.text import STOP_WORDS, count_words, distinct_n, has_only_stop_words, normalise, words
from instructgym.metrics.vendi import vendi_score

__all__ = [
    "STOP_WORDS",
    "Block",
    "Coverage",
    "Deduplicated",
    "Dropped",
    "PreferenceAccuracy",
    "Retest",
    "auc",
    "category_coverage",
    "cohen_kappa",
    "compression_ratio",
    "count_words",
    "coverage",
    "deduplicate",
    "distinct_2",
    "distinct_n",
    "has_chatter",
    "has_only_stop_words",
    "homogenisation",
    "keep_best",
    "kendall",
    "leaks_template",
    "llmbar_published_kappa",
    "llmbar_published_order_kappa",
    "max_rouge_l",
    "mean_pairwise_distance",
    "normalise",
    "novelsum",
    "order_agreement",
    "preference_accuracy",
    "refuses",
    "rouge_l",
    "self_bleu",
    "spearman",
    "spearman_interval",
    "structured_blocks",
    "template_markers",
    "test_retest",
    "vendi_score",
    "verb_noun",
    "verb_noun_coverage",
    "words",
]
