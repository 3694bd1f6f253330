from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from gymnasium import spaces

from instructgym.agents import evaluate, load_agent, save_agent
from instructgym.agents.language_model import LMConfig, LMInstructor
from instructgym.agents.language_model.reading import batches
from instructgym.agents.spaces import stack_rows
from instructgym.errors import ConfigError, MissingDependencyError
from instructgym.llm_backends.tokenizing import ByteTokenizer, open_tokenizer
from tests.agents.language_toys import (
    BERT,
    GPT2,
    LLAMA,
    NAMES,
    MaskedTopics,
    Rounds,
    Topics,
    save_model,
    save_tokenizer,
)
from tests.agents.toy_envs import vector

FAST = {"n_steps": 4, "batch_size": 32, "n_epochs": 4, "gamma": 0.0, "device": "cpu"}
WIDE = {**BERT, "hidden_size": 128, "num_attention_heads": 4, "initializer_range": 0.2}
SPREAD = {**GPT2, "initializer_range": 0.1}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The folder of the tokenizer of whole words."""
    return str(save_tokenizer(tmp_path_factory.mktemp("words")))


def made(env, words, model, seed=0, **options):
    space, actions = env.single_observation_space, env.single_action_space
    options = {"tokenizer": words, **FAST, **options}
    return LMInstructor(space, actions, seed=seed, action_names=NAMES, model=model, **options)


def topics(words, envs=16, kind=Topics):
    tokenizer = open_tokenizer(words)
    return vector(lambda: kind(tokenizer), envs)


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# --- learning ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "options", "threshold"),
    [
        (BERT, {"tune": "full", "learning_rate": 3e-3}, 0.5),
        (LLAMA, {"tune": "full", "learning_rate": 3e-3}, 0.6),
        (LLAMA, {"tune": "lora", "learning_rate": 1e-2}, 0.6),
        (WIDE, {"tune": "frozen", "learning_rate": 1e-2, "n_epochs": 10}, 0.5),
        (SPREAD, {"head": "names", "tune": "lora", "learning_rate": 1e-2, "name_temperature": 0.3}, 0.6),
    ],
    ids=["encoder-full", "decoder-full", "decoder-lora", "encoder-frozen", "names-lora"],
)
def test_learns_the_operation_that_fits_the_text(words, model, options, threshold):
    """Four operations: chance is 0.25."""
    env = topics(words)
    lm = made(env, words, model, **options)
    before = evaluate(lm, env, 32).mean() / 2
    lm.learn(env, 1024)
    assert before < 0.5
    assert evaluate(lm, env, 32).mean() / 2 > threshold


@pytest.mark.parametrize("head", ["classifier", "names"])
def test_learns_from_the_history_where_the_text_says_nothing(words, head):
    model = BERT if head == "classifier" else GPT2
    env = topics(words, kind=Rounds)
    lm = made(env, words, model, head=head, learning_rate=1e-2 if head == "classifier" else 3e-2, n_epochs=10)
    lm.learn(env, 1024)
    assert evaluate(lm, env, 16).mean() / 2 > 0.9


def test_learns_among_legal_actions_and_never_takes_another(words):
    env = topics(words, kind=MaskedTopics)  # it raises if an illegal action is taken
    lm = made(env, words, LLAMA, tune="full", learning_rate=3e-3)
    lm.learn(env, 1024)
    assert evaluate(lm, env, 32).mean() / 2 > 0.5


# --- what it computes -------------------------------------------------------------------------------------------------
UNLIKE = ("add", "write more", "x")
TEXTS = ("Sort the numbers.", "Say why.", "Explain in three sentences why the sky is blue.", "")


class Bytes(Topics):
    """Texts of very different lengths, and operations whose names have different lengths."""

    def __init__(self):
        super().__init__(length=64)
        self.action_space = spaces.Discrete(len(UNLIKE))
        self.observation_space["history"] = spaces.MultiDiscrete([len(UNLIKE) + 1] * self.horizon)

    def observation(self, text):
        filled = [*self.history, *([len(UNLIKE)] * (self.horizon - len(self.history)))]
        return {**super().observation(text), "history": np.array(filled)}

    def batch(self):
        rows = []
        for number, text in enumerate(TEXTS):
            self.history = [number % 3] if number % 2 else []
            rows.append(self.observation(text))
        return stack_rows(self.observation_space, rows)


def on_bytes(model, seed=0, **options):
    env = Bytes()
    options = {"device": "cpu", **options}
    lm = LMInstructor(env.observation_space, env.action_space, seed=seed, action_names=UNLIKE, model=model, **options)
    return lm, env.batch()


def prompt_of(text, history):
    chosen = ", ".join(UNLIKE[action] for action in history) or "none"
    return (
        "An instruction is made more demanding, step by step, by one of these operations: add, write more, x.\n\n"
        f"Instruction:\n{text}\n\nOperations so far: {chosen}\nNext operation:"
    )


def scores_one_by_one(model, score):
    """The log-probability of each name after each prompt: one whole sequence a pass, nothing shared and no padding."""
    tokenizer = ByteTokenizer()
    rows = []
    for number, text in enumerate(TEXTS):
        prompt = tokenizer.encode(prompt_of(text, [number % 3] if number % 2 else []))
        row = []
        for name in UNLIKE:
            ending = tokenizer.encode(f" {name}\n")
            logits = model(torch.tensor([[*prompt, *ending]])).logits[0]
            found = torch.log_softmax(logits.double(), dim=-1)[len(prompt) - 1 : -1]
            own = found[torch.arange(len(ending)), torch.tensor(ending)]
            row.append(own.mean() if score == "mean" else own.sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)


LONG = {"gpt2": {**GPT2, "n_positions": 400}, "llama": {**LLAMA, "max_position_embeddings": 400}}


@pytest.mark.parametrize("score", ["mean", "sum"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_scores_of_names_are_their_log_probabilities(family, score):
    table = {**LONG[family], "initializer_range": 0.3}
    lm, obs = on_bytes(table, head="names", tune="full", name_score=score, name_temperature=0.5)
    with torch.no_grad():
        expected = scores_one_by_one(lm.base.model, score).numpy() / 0.5
    got = lm.network.logits(lm.flatten(obs))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    forward, _ = lm.network.forward(torch.from_numpy(lm.flatten(obs)))
    np.testing.assert_allclose(forward.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_the_scores_are_those_of_whole_sequences():
    lm, obs = on_bytes({**LONG["llama"], "initializer_range": 0.3}, head="names", tune="full")
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(len(TEXTS), 3)))
    names = [name for name in lm.network.parameters if name.startswith("model.")]

    def gradients(scores):
        lm.network.grad.zero_()
        (scores * weights).sum().backward()
        return {name: lm.network.parameters[name].grad.clone() for name in names}

    ours = gradients(lm.network.forward(torch.from_numpy(lm.flatten(obs)))[0])
    plain = gradients(scores_one_by_one(lm.base.model, "mean"))
    assert float(plain["model.model.embed_tokens.weight"].abs().max()) > 1e-3
    for name in names:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("table", "pooling"), [(BERT, "auto"), (BERT, "first"), (LLAMA, "auto"), (LLAMA, "mean")], ids=str
)
def test_a_batch_pools_as_each_text_alone_does(table, pooling):
    lm, obs = on_bytes({**table, "max_position_embeddings": 400}, tune="full", pooling=pooling)
    flat = lm.flatten(obs)
    together = lm.network.logits(flat)
    lm.network.forget()
    alone = np.concatenate([lm.network.logits(flat[[row]]) for row in range(len(flat))])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)
    assert len(np.unique(together.round(6), axis=0)) == len(TEXTS)


def test_dropout_is_off_in_training_too():
    lm, obs = on_bytes({**BERT, "max_position_embeddings": 400, "hidden_dropout_prob": 0.5}, tune="full")
    flat = torch.from_numpy(lm.flatten(obs))
    first, second = (lm.network.forward(flat)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("head", ["classifier", "names"])
def test_probabilities_sum_to_one_and_respect_masks(head):
    lm, obs = on_bytes(LONG["gpt2"], head=head)
    mask = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0]], bool)
    probs, _ = lm.probabilities(obs, action_mask=mask)
    np.testing.assert_allclose(probs.sum(axis=1), 1.0, atol=1e-12)
    assert (probs[~mask] == 0).all()
    assert (probs[mask] > 0).all()
    rng = [np.random.default_rng(row) for row in range(4)]
    decision = lm.act(obs, action_mask=mask, rng=rng)
    assert mask[np.arange(4), decision.actions].all()
    np.testing.assert_allclose(np.exp(decision.log_prob), probs[np.arange(4), decision.actions], rtol=1e-5)


def test_a_frozen_correction_starts_at_the_scores(words):
    lm, obs = on_bytes(LONG["gpt2"], head="names")
    with torch.no_grad():
        expected = scores_one_by_one(lm.base.model, "mean").numpy()
    np.testing.assert_allclose(lm.network.logits(lm.flatten(obs)), expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_model_reads_a_text_once(words, monkeypatch):
    env = topics(words)
    lm = made(env, words, BERT)
    read = []
    inner = type(lm.network._model).read
    monkeypatch.setattr(
        type(lm.network._model), "read", lambda self, prompts: read.extend(prompts) or inner(self, prompts)
    )
    lm.learn(env, 512)
    assert len(read) == len(set(read)) <= 12 * (1 + 4 + 16)


def test_a_long_instruction_is_cut_and_the_history_is_kept():
    env = Bytes()
    env.history = [1]
    obs = stack_rows(env.observation_space, [env.observation("a" * 200)])
    options = {"tune": "frozen", "device": "cpu", "action_names": UNLIKE}
    lm = LMInstructor(
        env.observation_space, env.action_space, model={**LLAMA, "max_position_embeddings": 120}, **options
    )
    (prompt,) = lm.network._prompts(lm.flatten(obs))
    assert len(prompt) <= 120
    assert ByteTokenizer().decode(prompt).endswith("aaa\n\nOperations so far: write more\nNext operation:")


def test_special_tokens_stand_around_an_encoders_prompt(tmp_path):
    folder = str(save_tokenizer(tmp_path, special=True))
    env = topics(folder)
    space, actions = env.single_observation_space, env.single_action_space
    for model in (BERT, LLAMA):
        lm = LMInstructor(space, actions, action_names=NAMES, model=model, tokenizer=folder, device="cpu")
        obs, _ = env.reset(seed=0)
        prompt = lm.network._prompts(lm.flatten(obs))[0]
        assert prompt[0] == 2
        assert (prompt[-1] == 3) == (model is BERT)  # a decoder goes on after it


def test_batches_hold_like_lengths_and_at_most_so_many_tokens():
    lengths = [5, 100, 6, 5, 40, 41]
    found = batches(lengths, 90)
    assert found == [[0, 3, 2], [4, 5], [1]]
    assert batches(lengths, 1) == [[0], [3], [2], [4], [5], [1]]


# --- repeating itself -------------------------------------------------------------------------------------------------
REPEATED = [
    (BERT, {"tune": "frozen"}),
    (LLAMA, {"tune": "lora", "lora_targets": ["q_proj", "v_proj"]}),
    (BERT, {"tune": "full"}),
    (GPT2, {"tune": "frozen", "head": "names"}),
    (GPT2, {"tune": "lora", "head": "names", "net_arch": [8]}),
]


@pytest.mark.parametrize(("model", "options"), REPEATED, ids=lambda value: str(value)[:60])
def test_the_same_seed_twice_gives_the_same_bytes_and_going_on_changes_nothing(words, tmp_path, model, options):
    def fresh(seed=3):
        env = topics(words, 4)
        return env, made(env, words, model, seed, **{**options, "normalize_reward": True, "lr_schedule": "linear"})

    env, undisturbed = fresh()
    saved = []

    def keep():
        folder = tmp_path / str(len(saved))
        save_agent(undisturbed, folder, action_set_hash="h", action_set_names=NAMES)
        saved.append(folder)

    undisturbed.learn(env, 96, segment_steps=32, on_segment_end=keep)
    env, again = fresh()
    again.learn(env, 96, segment_steps=32)
    assert same(again.state_dict(), undisturbed.state_dict())
    _, other = fresh(seed=4)
    assert not same(other.network.state_dict(), undisturbed.network.state_dict())
    assert len(saved) == 2
    for folder in saved:
        resumed = load_agent(folder, expected_action_set_hash="h")
        assert isinstance(resumed, LMInstructor)
        resumed.learn(topics(words, 4), 96 - resumed.num_steps, segment_steps=32)
        assert same(resumed.state_dict(), undisturbed.state_dict())


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_a_checkpoint_holds_what_is_trained_and_no_more(words, tmp_path, tune):
    from safetensors.numpy import load_file

    model = str(save_model(tmp_path / "base", LLAMA))
    env = topics(words)
    lm = made(env, words, model, tune=tune)
    lm.learn(env, 64)
    save_agent(lm, tmp_path / "agent", action_set_hash="h", action_set_names=NAMES)
    arrays = load_file(tmp_path / "agent" / "weights.safetensors")
    of_model = [name for name in arrays if name.startswith("network.model.")]
    whole = sum(parameter.numel() for name, parameter in lm.base.model.named_parameters() if "lora_" not in name)
    if tune == "frozen":
        assert not of_model
    elif tune == "lora":
        assert of_model
        assert all("lora_" in name for name in of_model)
    else:
        assert sum(arrays[name].size for name in of_model) == whole
    assert sum(array.size for name, array in arrays.items() if name.startswith("network.")) == lm.network.flat.numel()
    loaded = load_agent(tmp_path / "agent", expected_action_set_hash="h")
    obs, _ = env.reset(seed=1)
    mask = np.ones((16, 4), bool)
    np.testing.assert_array_equal(
        loaded.probabilities(obs, action_mask=mask)[0], lm.probabilities(obs, action_mask=mask)[0]
    )


def test_what_is_trained_lies_in_one_vector_that_the_model_uses(words):
    env = topics(words)
    lm = made(env, words, LLAMA, tune="full")
    obs = lm.flatten(env.reset(seed=0)[0])
    before = lm.network.logits(obs)
    with torch.no_grad():
        lm.network.flat.mul_(0.5)
    lm.network.forget()
    assert not np.allclose(lm.network.logits(obs), before)
    logits, values = lm.network.forward(torch.from_numpy(obs))
    lm.network.grad.zero_()
    (logits[:, 0].sum() + values.sum()).backward()
    assert float(lm.network.grad.abs().min()) == 0.0  # embeddings of words that do not stand there
    assert (lm.network.grad != 0).float().mean() > 0.3


# --- refusals ---------------------------------------------------------------------------------------------------------
def test_another_base_model_is_refused_when_a_checkpoint_is_loaded(words, tmp_path):
    model = str(save_model(tmp_path / "base", LLAMA))
    env = topics(words)
    lm = made(env, words, model, tune="lora")
    print_before = lm.base.fingerprint
    save_agent(lm, tmp_path / "agent", action_set_hash="h", action_set_names=NAMES)
    card = json.loads((tmp_path / "agent" / "agent.json").read_text())
    assert card["state"]["base"] == {"name": model, "fingerprint": print_before}
    save_model(tmp_path / "base", {**LLAMA, "initializer_range": 0.03})
    other = made(env, words, model, tune="lora").base.fingerprint
    with pytest.raises(ConfigError) as caught:
        load_agent(tmp_path / "agent", expected_action_set_hash="h")
    assert str(caught.value) == (
        f"agent 'lm' was trained on weights {print_before} of '{model}', and '{model}' now has {other}; expected the "
        "model that it was trained on. Its folder or name stands in agent.json, under kwargs.model."
    )


def test_a_fingerprint_is_the_same_in_bfloat16(words, tmp_path):
    model = str(save_model(tmp_path / "base", LLAMA))
    prints = {made(topics(words), words, model, dtype=dtype).base.fingerprint for dtype in ("float32", "bfloat16")}
    assert len(prints) == 1


def test_adapters_are_trained_in_float32_on_a_model_in_bfloat16(words, tmp_path):
    model = str(save_model(tmp_path / "base", LLAMA))
    env = topics(words)
    lm = made(env, words, model, tune="lora", dtype="bfloat16")
    assert lm.base.model.dtype == torch.bfloat16
    assert lm.network.flat.dtype == torch.float32
    lm.learn(env, 64)
    assert np.isfinite(lm.network.state_dict()["value.0.weight"]).all()


def test_weights_of_a_fully_trained_model_stay_in_float32_where_it_computes_in_bfloat16(words, tmp_path):
    env = topics(words)
    lm = made(env, words, BERT, tune="full", dtype="bfloat16")
    assert lm.base.model.dtype == torch.float32
    before = lm.network.flat.clone()
    lm.learn(env, 64)
    assert not torch.equal(lm.network.flat, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ""}, "lm: model = ''; expected a folder, a name of transformers, or a table with a model_type."),
        ({"model": {}}, "lm: model = {}; expected a folder, a name of transformers, or a table with a model_type."),
        ({"model": "m", "head": "tail"}, "lm: head = 'tail'; expected 'classifier' or 'names'."),
        ({"model": "m", "tune": "some"}, "lm: tune = 'some'; expected 'frozen', 'lora' or 'full'."),
        (
            {"model": "m", "head": "names", "pooling": "mean"},
            "lm: pooling = 'mean'; expected 'auto' or 'last', since head = 'names'.",
        ),
        ({"model": "m", "lora_r": 0}, "lm: lora_r = 0; expected a whole number of at least 1."),
        (
            {"model": "m", "network": "gru"},
            "lm: network = 'gru'; expected 'mlp', which it does not use: its network is the language model.",
        ),
        (
            {"model": "m", "normalize_obs": True},
            "lm: normalize_obs = True; expected false: tokens are no measurements.",
        ),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ConfigError) as caught:
        LMConfig(**options)
    assert str(caught.value) == message


def refusal(words, model, env=None, **options):
    with pytest.raises(ConfigError) as caught:
        made(env or topics(words), words, model, **options)
    return str(caught.value)


def test_models_that_cannot_be_used(words, tmp_path):
    assert refusal(words, BERT, head="names") == (
        "'bert from scratch' is a BertLMHeadModel, which does not continue a text; head = 'names' expects a causal "
        "model such as Llama, Qwen or GPT-2. Use head = 'classifier'."
    )
    t5 = {"model_type": "t5", "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "d_kv": 8}
    assert refusal(words, t5) == (
        "'t5 from scratch' is an encoder and a decoder; expected one of them, such as BERT or Llama"
    )
    assert refusal(words, {**BERT, "vocab_size": 7}) == (
        f"the tokenizer '{words}' has 39 tokens and 'bert from scratch' has embeddings for 7; they do not belong "
        "together"
    )
    assert refusal(words, {"model_type": "bart3000"}).startswith(
        "agent 'lm': no AutoModel can be made of model = {'model_type': 'bart3000'}: "
    )
    assert refusal(words, str(tmp_path / "nowhere")) == (
        f"there is no folder {tmp_path / 'nowhere'}; expected a folder with a model, or a name such as 'org/model'"
    )
    assert refusal(words, {**BERT, "max_position_embeddings": 12}).startswith(
        "agent 'lm': the model takes 12 tokens, and the prompt has "
    )
    assert refusal(words, LLAMA, tune="lora", lora_targets=["w_proj"]).startswith(
        "agent 'lm': no adapters for lora_targets = ('w_proj',): Target modules"
    )


def test_observations_that_it_cannot_read(words):
    wrong = Topics()  # of bytes
    assert refusal(words, BERT, env=vector(lambda: wrong, 1)) == (
        f"agent 'lm' reads tokens of '{words}', a vocabulary of 39, but the observation's are of one of 257; set "
        f"env.tokenizer = '{words}'."
    )
    flat = spaces.Box(0.0, 1.0, (3,), np.float32)
    with pytest.raises(ConfigError) as caught:
        LMInstructor(flat, spaces.Discrete(4), model=BERT, device="cpu")
    assert str(caught.value) == (
        "agent 'lm' reads tokens; expected the observation 'tokens' (history, ids, mask, step), got "
        "Box(0.0, 1.0, (3,), float32). Set env.observation = 'tokens'."
    )
    tokenizer = open_tokenizer(words)
    lm = made(topics(words), words, BERT)
    longer = vector(lambda: Topics(tokenizer, length=12), 2)
    with pytest.raises(ConfigError) as caught:
        lm.act(longer.reset(seed=0)[0], action_mask=np.ones((2, 4), bool), rng=[np.random.default_rng(0)] * 2)
    assert str(caught.value) == (
        "agent 'lm' was made for observations of 29 numbers (8 tokens, horizon 2), got 37; use the "
        "env.observation_length and env.horizon that it was trained with."
    )


def test_adapters_need_peft(words, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    with pytest.raises(MissingDependencyError) as caught:
        made(topics(words), words, LLAMA, tune="lora")
    assert str(caught.value) == "this needs peft, which is not installed: pip install 'instructgym[lm]'"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("model", "options"),
    [(BERT, {"tune": "full"}), (LLAMA, {"tune": "lora"}), (GPT2, {"tune": "lora", "head": "names"}), (BERT, {})],
)
def test_on_cuda(words, tmp_path, model, options):
    env = topics(words)
    lm = made(env, words, model, **{**options, "device": "cuda"})
    assert lm.network.flat.device.type == "cuda"
    lm.learn(env, 256)
    save_agent(lm, tmp_path / "agent", action_set_hash="h", action_set_names=NAMES)
    loaded = load_agent(tmp_path / "agent", expected_action_set_hash="h")
    obs, mask = env.reset(seed=1)[0], np.ones((16, 4), bool)
    np.testing.assert_allclose(
        loaded.probabilities(obs, action_mask=mask)[0], lm.probabilities(obs, action_mask=mask)[0], atol=1e-3
    )
