#!/usr/bin/env python3
"""Remakes the table of vectors that the tests compare with: all-MiniLM-L6-v2 computed by PyTorch.

    python scripts/make_reference_vectors.py MODEL_FOLDER > tests/worker/engines/minilm_reference.json

Needs torch and transformers, which the pool itself does not: run it in an environment of its own.
"""

import base64
import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

MAX_TOKENS = 256
TOPICS = (
    "cats",
    "interest rates",
    "volcanoes",
    "jazz",
    "databases",
    "bread",
    "black holes",
    "football",
    "visas",
    "tea",
)
SENTENCES = (
    "The history of {} is longer than most people think.",
    "Where can I learn more about {}?",
    "i dont care about {} at all!!",
    "A short note on {}: see chapter 4.",
    "{}",
)
VARIED = (
    "a",
    "?",
    "42",
    "   leading and trailing blanks   ",
    "line one\nline two\r\n\tindented",
    "ALL CAPITALS AND A LOT OF THEM",
    "MixedCase camelCase snake_case kebab-case",
    "def add(a, b):\n    return a + b  # sums two numbers",
    "SELECT name, count(*) FROM users WHERE age > 30 GROUP BY name;",
    '{"key": "value", "list": [1, 2, 3], "nested": {"deep": null}}',
    "Ünïcödé äöü ß – Größe, naïve café, jalapeño",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Le renard brun saute par-dessus le chien paresseux.",
    "El zorro marrón salta sobre el perro perezoso.",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "素早い茶色の狐がのろまな犬を飛び越える。",
    "敏捷的棕色狐狸跳过懒狗。",
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول",
    "ह भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है",
    "😀 emoji 🚀 in 🐈 between 👩‍👩‍👧",
    "e = mc^2, ∑ x_i ≤ ∞, α ≈ β",
    "https://example.org/path?query=1&other=two#part",
    "someone@example.org wrote on 2024-02-29 at 13:37",
    "[CLS] [SEP] [MASK] are control tokens written out",
    "antidisestablishmentarianism supercalifragilisticexpialidocious",
    "x" * 150,
    "no. no. no. no. no. no. no. no.",
    "\u00a0non-breaking\u00a0blanks\u2003and\u200bothers",
    "1234567890 3.14159 -273.15 1e-9 0xff",
)
WORDS = ("the", "of", "river", "market", "engine", "green", "quickly", "under", "seven", "paper", "stone", "never")


def texts() -> list[str]:
    """Short and long, many scripts, around and beyond the model's limit."""
    chance = random.Random(7)
    found = [sentence.format(topic) for topic in TOPICS for sentence in SENTENCES] + list(VARIED)
    lengths = [*range(3, 60, 3), 80, 100, 128, 150, 180, 200, 220, 240, 252, 253, 254, 255, 256, 300, 500]
    return found + [" ".join(chance.choices(WORDS, k=length)) for length in lengths]


def main() -> int:
    """Print the table."""
    folder = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = texts()
    rows = []
    for text in inputs:
        given = tokenizer([text], truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**given).last_hidden_state
        weights = given["attention_mask"][..., None].float()
        vector = (hidden * weights).sum(1) / weights.sum(1)
        rows.append(torch.nn.functional.normalize(vector, dim=-1)[0])
    table = torch.stack(rows).to(torch.float32).contiguous()
    data = base64.b64encode(bytes(table.view(torch.uint8).flatten().tolist())).decode()
    json.dump({"made_with": f"torch {torch.__version__}", "texts": inputs, "vectors": data}, sys.stdout, indent=0)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
