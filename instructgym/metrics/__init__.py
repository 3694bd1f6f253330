"""What is measured of texts and sets: pure functions over strings and arrays."""

from instructgym.metrics.diversity import distinct_2, mean_pairwise_distance
from instructgym.metrics.faults import has_chatter, leaks_template, refuses, template_markers
from instructgym.metrics.structure import Block, coverage, structured_blocks
from instructgym.metrics.text import STOP_WORDS, count_words, distinct_n, has_only_stop_words, normalise, words

__all__ = [
    "STOP_WORDS",
    "Block",
    "count_words",
    "coverage",
    "distinct_2",
    "distinct_n",
    "has_chatter",
    "has_only_stop_words",
    "leaks_template",
    "mean_pairwise_distance",
    "normalise",
    "refuses",
    "structured_blocks",
    "template_markers",
    "words",
]
