#!/usr/bin/env python3
"""Remakes the tables of vectors that the tests compare with, all computed by PyTorch.

    python scripts/make_reference_vectors.py minilm MODEL_FOLDER > tests/worker/engines/minilm_reference.json
    python scripts/make_reference_vectors.py tiny > tests/worker/engines/tiny_reference.json

`minilm` is all-MiniLM-L6-v2 through sentence-transformers; `tiny` are seeded random models of each architecture (see
`models/encoders.py` and `models/seeing.py`) through transformers. Needs torch, transformers, sentence-transformers and
Pillow: run it in an environment of its own.
"""

import argparse
import base64
import io
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch
import transformers
from models import encoders, seeing
from PIL import Image
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

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
WORLD = (
    "Szybki brązowy lis przeskakuje nad leniwym psem.",
    "A gyors barna róka átugrik a lusta kutya fölött.",
    "Rychlá hnědá liška skáče přes líného psa.",
    "Hızlı kahverengi tilki tembel köpeğin üzerinden atlar.",
    "Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.",
    "השועל החום המהיר קופץ מעל הכלב העצלן.",
    "Con cáo nâu nhanh nhẹn nhảy qua con chó lười.",
    "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ",
    "Den snabba bruna räven hoppar över den lata hunden.",
    "La rapida volpe marrone salta sopra il cane pigro.",
    "A rápida raposa castanha salta sobre o cão preguiçoso.",
    "De snelle bruine vos springt over de luie hond.",
    "Nopea ruskea kettu hyppää laiskan koiran yli.",
    "Rubah coklat yang cepat melompati anjing malas.",
    "দ্রুত বাদামী শিয়াল অলস কুকুরের উপর লাফ দেয়।",
    "வேகமான பழுப்பு நரி சோம்பேறி நாயின் மேல் குதிக்கிறது.",
    "სწრაფი ყავისფერი მელა გადახტება ზარმაც ძაღლს.",
    "Արագ շագանակագույն աղվեսը ցատկում է ծույլ շան վրայով։",
    "Mbweha mwepesi wa kahawia anaruka juu ya mbwa mvivu.",
    "Léim an sionnach donn tapa thar an madra leisciúil.",
)
CODE = (
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }",
    '#!/bin/sh\nset -eu\nfor f in *.txt; do\n\twc -l "$f"\ndone',
    'fn main() -> Result<(), Box<dyn Error>> { println!("{:?}", x?); Ok(()) }',
    '<div class="a b"><p>text &amp; more</p><!-- hidden --></div>',
    "Traceback (most recent call last):\n  File \"x.py\", line 3, in <module>\nKeyError: 'name'",
    "git rebase -i HEAD~3 && git push --force-with-lease origin main",
    "\\begin{equation} \\int_0^1 x^2 \\, dx = \\frac{1}{3} \\end{equation}",
    "[2024-05-01T12:00:00Z] WARN  http: 503 in 1.234s (retry=2) id=9f8e7d",
    'a,b,c\n1,2,3\n4,5,6\n"x ""y""",,',
    "import * as fs from 'node:fs'; export const read = async (p) => fs.promises.readFile(p);",
)
EMOJI = "😀🚀🐈🔥🎉🤖🍕🌍💡🧪👍🏽👩‍🚀🇩🇪❤️✨"
BLANKS = (
    "  two  blanks  ",
    "\ttab\tstops\t",
    "\n\n\nlines\n\n\n",
    "\u3000wide\u3000",
    "e\u0301 combining",
    "\u202eleft",
    "soft\u00adhyphen",
)
WORDS = ("the", "of", "river", "market", "engine", "green", "quickly", "under", "seven", "paper", "stone", "never")


def texts() -> list[str]:
    """Return short and long texts, of many scripts, around and beyond the model's limit."""
    chance = random.Random(7)
    found = [sentence.format(topic) for topic in TOPICS for sentence in SENTENCES] + list(VARIED)
    lengths = [*range(3, 60, 3), 80, 100, 128, 150, 180, 200, 220, 240, 252, 253, 254, 255, 256, 300, 500]
    found += [" ".join(chance.choices(WORDS, k=length)) for length in lengths]
    found += [*WORLD, *CODE, *BLANKS]
    found += ["".join(chance.choices(EMOJI, k=length)) for length in (1, 2, 5, 9, 20, 60)]
    found += [" ".join(chance.sample(WORLD + VARIED, 2)) for _ in range(30)]
    return (
        found
        + ["\n".join(chance.sample(CODE + WORLD + VARIED, count)) for count in (3, 4, 5, 6, 8, 10, 12)]
        + [sentence.format("the weather").upper() for sentence in SENTENCES]
        + [f"{number} {chance.choice(WORDS)}" for number in range(5)]
    )


def minilm(folder: str) -> dict[str, Any]:
    """Embed each text alone: what batches make of it is for the tests."""
    model = SentenceTransformer(folder, device="cpu")
    model.max_seq_length = MAX_TOKENS
    inputs = texts()
    table = np.concatenate([model.encode([text], normalize_embeddings=True) for text in inputs])
    return {
        "made_with": f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}",
        "texts": inputs,
        "vectors": _packed(table),
    }


def tiny() -> dict[str, Any]:
    """Send `encoders.texts()`, each alone, through every model of `encoders.CONFIGS`. Return the vectors."""
    found: dict[str, Any] = {"made_with": f"transformers {transformers.__version__}, torch {torch.__version__}"}
    with tempfile.TemporaryDirectory() as scratch:
        for name in encoders.CONFIGS:
            found[name] = _packed(_tiny(name, encoders.write(name, Path(scratch) / name)))
        for name, look in (("siglip", _siglip), ("qwen2_vl", _qwen2_vl)):
            folder = seeing.write(name, Path(scratch) / name)
            files = [Image.open(io.BytesIO(file)).convert("RGB") for file in seeing.pictures()]
            found[name] = _packed(look(folder, files))
    return found


def _tiny(name: str, folder: Path) -> Any:
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    rows = []
    for tokens in encoders.texts():
        with torch.no_grad():
            hidden = model(torch.tensor([tokens])).last_hidden_state[0]
        match encoders.POOLINGS.get(name):
            case "cls":
                vector = hidden[0]
            case "lasttoken":
                vector = hidden[-1]
            case _:
                vector = hidden.mean(0)
        for layer in encoders.dense(name):
            vector = torch.tensor(layer) @ vector
        rows.append(torch.nn.functional.normalize(vector, dim=-1).numpy())
    return np.stack(rows)


def _siglip(folder: Path, files: list[Image.Image]) -> Any:
    """Embed texts, images, and the means of both."""
    model = transformers.SiglipModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = [tokenizer.encode(text).ids for text in seeing.TEXTS]
    padded = [ids + [1] * (seeing.TEXT_LENGTH - len(ids)) for ids in tokens]
    pixels = SiglipImageProcessorPil.from_pretrained(folder)(files, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        texts = _unit(model.get_text_features(torch.tensor(padded)).pooler_output)
        images = _unit(model.get_image_features(pixels).pooler_output)
    return torch.cat([texts, images, _unit(texts + images)]).numpy()


def _qwen2_vl(folder: Path, files: list[Image.Image]) -> Any:
    """Embed texts, images, and both, as published for embedding models of that line."""
    model = transformers.Qwen2VLModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    process = Qwen2VLImageProcessorPil.from_pretrained(folder)
    rows = []
    for texts, images in ((seeing.TEXTS, [None] * 4), ([""] * 4, files), (seeing.TEXTS, files)):
        for text, image in zip(texts, images, strict=True):
            more = {}
            shown = ""
            if image is not None:
                more = dict(process([image], return_tensors="pt"))
                count = int(more["image_grid_thw"].prod()) // 4
                shown = "<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>"
            prompt = f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{shown}{text}"
            ids = torch.tensor([tokenizer.encode(f"{prompt}<|im_end|>\n<|im_start|>assistant\n<|endoftext|>").ids])
            kinds = (ids == model.config.image_token_id).int()
            with torch.no_grad():
                hidden = model(input_ids=ids, mm_token_type_ids=kinds, **more).last_hidden_state
            rows.append(_unit(hidden[0, -1:]))
    return torch.cat(rows).numpy()


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def _packed(table: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(table, dtype="<f4").tobytes()).decode()


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("minilm", "tiny"))
    parser.add_argument("folder", nargs="?", help="of all-MiniLM-L6-v2")
    options = parser.parse_args()
    json.dump(minilm(options.folder) if options.table == "minilm" else tiny(), sys.stdout, indent=0)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
