"""A model is opened for training as a whole, or refused in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import transformers

from instructgym.errors import ConfigError
from instructgym.train.tuning.arguments import lora_config
from instructgym.train.tuning.settings import DPOSettings, LoraSettings, SFTSettings
from instructgym.train.tuning.sft import train_sft
from instructgym.train.tuning.student import PLAIN_TEMPLATE, model_digest, open_student
from tests.llm_backends.tiny_models import CHATML, make_model, make_tokenizer, save

from .conftest import conversations


def refusal(folder: Path | str, **options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        open_student(folder, device="cpu", **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_model_without_a_chat_template_is_refused_unless_one_is_given(tmp_path: Path) -> None:
    folder = save(tmp_path / "m0", template=None)
    assert refusal(folder) == (
        f"the tokenizer of '{folder}' has no chat template, so nobody would know how it was trained to be asked; set "
        "chat_template = 'plain', or a file with a Jinja template"
    )
    assert open_student(folder, chat_template="plain").tokenizer.chat_template == PLAIN_TEMPLATE
    own = tmp_path / "own.jinja"
    own.write_text(CHATML, "utf-8")
    assert open_student(folder, chat_template=str(own)).tokenizer.chat_template == CHATML
    missing = tmp_path / "none.jinja"
    assert refusal(folder, chat_template=str(missing)) == (
        f"the chat template '{missing}' cannot be read: [Errno 2] No such file or directory: '{missing}'; expected '', "
        "'plain' or a Jinja file"
    )


def test_a_folder_that_is_no_whole_model_is_refused(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    make_model().save_pretrained(bare)
    assert refusal(bare).startswith(f"the tokenizer of '{bare}' cannot be loaded: ")
    assert refusal(bare).endswith("; expected a tokenizer saved there with save_pretrained")
    weightless = save(tmp_path / "weightless")
    (weightless / "model.safetensors").unlink()
    assert refusal(weightless).startswith(f"the model of '{weightless}' cannot be loaded: ")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(empty) == (
        f"the folder {empty} holds no config.json; expected a model saved with save_pretrained, or its name"
    )
    assert refusal(str(tmp_path / "none")) == (
        f"there is no folder {tmp_path / 'none'}; expected a folder with a model, or a name such as 'org/model'"
    )
    assert refusal("") == "the model's name is empty; expected a folder, or a name such as 'org/model'"


def test_a_tokenizer_that_does_not_belong_to_the_model_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "m0")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(402 - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    assert refusal(folder) == (
        f"the tokenizer of '{folder}' has 402 tokens and the model has embeddings for 400; they do not belong together"
    )
    endless = make_tokenizer()
    endless.eos_token = None
    endless.save_pretrained(folder)
    assert refusal(folder) == (
        f"the tokenizer of '{folder}' has no end token (eos), so an answer could never end; add one"
    )


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "m0")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": None}), "utf-8")
    found = refusal(folder)
    assert found.startswith(f"the weights of '{folder}' lack 9 of the tensors that LlamaForCausalLM needs, such as ")


def test_four_bits_need_a_gpu(tiny: Path, tmp_path: Path) -> None:
    settings = SFTSettings(lora=LoraSettings(), quantization="nf4")
    with pytest.raises(ConfigError) as caught:
        train_sft(tiny, conversations(4), settings, tmp_path, device="cpu")
    assert str(caught.value) == "quantization = 'nf4' needs a CUDA device, and this is cpu; leave it out."
    with pytest.raises(ConfigError) as caught:
        train_sft(tiny, conversations(4), SFTSettings(bf16=True), tmp_path, device="cpu")
    assert str(caught.value) == "bf16 = true needs a GPU, and the model is on cpu; leave it at 'auto'."


def test_a_digest_is_of_what_decides_answers(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    assert model_digest(copy) == model_digest(tiny)
    assert len(model_digest(copy)) == 16
    (copy / "README.md").write_text("words", "utf-8")
    assert model_digest(copy) == model_digest(tiny)
    (copy / "chat_template.jinja").write_text("other", "utf-8")
    assert model_digest(copy) != model_digest(tiny)


def test_adapters_go_onto_modules_that_are_there(tiny: Path) -> None:
    student = open_student(tiny)
    config = lora_config(SFTSettings(lora=LoraSettings(target_modules=("q_proj", "v_proj"))), student)
    assert config.target_modules == {"q_proj", "v_proj"}
    assert lora_config(SFTSettings(), student) is None
    with pytest.raises(ConfigError) as caught:
        lora_config(SFTSettings(lora=LoraSettings(target_modules=("q_proj", "Wqkv"))), student)
    assert str(caught.value) == (
        "lora.target_modules names 'Wqkv', which is no module of LlamaForCausalLM; leave it at 'auto', or take some of "
        "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj."
    )


def test_settings_that_contradict_each_other_are_refused() -> None:
    from instructgym.train.config import build

    def faults(kind: type, **values: object) -> str:
        with pytest.raises(ConfigError) as caught:
            build(kind, values, "tune")
        return str(caught.value)

    assert "there is no loss 'dpo'; there are sigmoid, sigmoid_norm, ipo, robust, hinge, sft" in faults(
        DPOSettings, losses={"dpo": 1.0}
    )
    assert "expected weights of 0 or more, one above 0" in faults(DPOSettings, losses={"sft": 0.0})
    assert "min_lr is 0.1, above lr, which is 0.001" in faults(SFTSettings, lr=1e-3, min_lr=0.1)
    assert "scheduler 'linear' does not go down to it" in faults(SFTSettings, scheduler="linear", min_lr=1e-6)
    assert "quantization freezes the weights" in faults(SFTSettings, quantization="nf4")
    assert "label_smoothing" in faults(DPOSettings, losses={"robust": 1.0}, label_smoothing=0.5)


def test_a_model_that_says_no_context_takes_the_settings_word(tmp_path: Path) -> None:
    assert open_student(save(tmp_path / "bloom", "bloom")).context is None
    assert open_student(save(tmp_path / "llama", context=64)).context == 64
    assert transformers.AutoConfig.from_pretrained(tmp_path / "llama").max_position_embeddings == 64
