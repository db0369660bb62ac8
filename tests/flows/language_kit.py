"""Tiny language models as transformers saves them, built from configs, with tokenizers trained on a few sentences."""

from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS: Final = [
    "the cat sat on the mat .",
    "a red square is on the left .",
    "the dog ran home !",
] * 4
CONTEXT: Final = 32


def gpt2(folder: Path) -> Any:
    """Save a GPT-2: tied tables, learned places, tokens of bytes, one token that begins and ends a text."""
    from transformers import GPT2Config, GPT2LMHeadModel

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
        ),
    )
    size = words.get_vocab_size()
    config = GPT2Config(
        vocab_size=size, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return _saved(GPT2LMHeadModel, config, words, {"bos_token": end, "eos_token": end}, folder)


def llama(folder: Path) -> Any:
    """Save a Llama: fewer keys than queries, a head of its own, a space put before each text, and `<unk>`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    words.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    words.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    words.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=80, special_tokens=special, show_progress=False)
    )
    config = LlamaConfig(
        vocab_size=words.get_vocab_size() + 5,  # as tables are filled up
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return _saved(LlamaForCausalLM, config, words, names, folder)


def _saved(cls: Any, config: Any, words: Tokenizer, names: dict[str, str], folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():  # at first every token is as likely as any other
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    return model


BUILT: Final = {"gpt2": gpt2, "llama": llama}
