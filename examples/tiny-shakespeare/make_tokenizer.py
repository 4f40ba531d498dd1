"""Writes tokenizer.json: a byte-level BPE of 2,048 words, trained on the first 90 % of Tiny Shakespeare.

    python make_tokenizer.py        (tokenizers 0.23)
"""

import pathlib

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

here = pathlib.Path(__file__).parent
text = (here.parent / "data/tinyshakespeare/input.txt").read_text(encoding="utf-8")
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=2048,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    special_tokens=["<|endoftext|>"],
    show_progress=False,
)
tokenizer.train_from_iterator([text[: len(text) * 9 // 10]], trainer)
tokenizer.save(str(here / "tokenizer.json"))
