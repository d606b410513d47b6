"""One side of a row: a padded loop over transformers' own class, answers in the order of the file, as RewardBench and
the recipes of model cards have it; or sorted by length before they are put into batches (score-sorted).

python -m benchmarks.peer_score WHAT MODEL PRECISION WARMUP FOLDER
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from itertools import cycle, islice
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.plan import SCORED, SCORED_TOGETHER, WHATS
from benchmarks.turns import Turns


def main() -> None:
    what, name, precision, warmup, folder = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])
    versions = {package: importlib.metadata.version(package) for package in ("transformers", "torch")}
    turns = Turns(warmup, versions=versions)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    path = folder / f"{name}-reward"
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = json.loads((folder / f"peer-{WHATS[what].data}").read_text(encoding="utf-8"))
    endless = cycle(rows)
    while True:
        talks = [row["prompt"] + row[side] for row in islice(endless, SCORED) for side in ("chosen", "rejected")]
        texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        if what == "score-sorted":
            ids.sort(key=len)
        with torch.no_grad():
            for start in range(0, len(ids), SCORED_TOGETHER):
                batch = tokenizer.pad({"input_ids": ids[start : start + SCORED_TOGETHER]}, return_tensors="pt")
                model(**batch).logits.float().tolist()
        turns.step(tokens=sum(map(len, ids)))


if __name__ == "__main__":
    main()
