"""Writes tokenizer.json: WordPiece of 8,192 words over SST-2's training phrases, as BERT's lower-casing
tokenizer splits and frames them.

    python make_tokenizer.py train.tsv        (tokenizers 0.23)
"""

import csv
import pathlib
import sys

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

with open(sys.argv[1], encoding="utf-8", newline="") as file:
    phrases = [row["sentence"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
trainer = trainers.WordPieceTrainer(vocab_size=8192, special_tokens=SPECIAL)
tokenizer.train_from_iterator(phrases, trainer)
tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
)
tokenizer.decoder = decoders.WordPiece()
tokenizer.save(str(pathlib.Path(__file__).with_name("tokenizer.json")))
print(tokenizer.get_vocab_size(), "words")
