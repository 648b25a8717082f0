#!/usr/bin/env python3
"""Builds the sample corpus from the hand-written pages in assets/corpus/pages/*.txt.

Every page is our own invention: the people, places, shops and products in them do not exist, and nothing was copied.
Quality is the author's own judgement and labels the training set of the quality classifier.

Source format, several pages per file:

    %%% https://host.example/path | kind | high
    text of the page, as a crawler would have extracted it
    ~ a clutter line: stays in `text`, leaves `clean`
    ~                 (alone: an empty clutter line)
    a sentence with ⟦a clutter fragment⟧ inside it

Writes pages-0.jsonl .. pages-3.jsonl (url, kind, quality, text) beside this file,
tests/golden/corpus_clean.jsonl (url, clean) and tests/golden/corpus_pairs.jsonl (chunks of pages: url, dirty, clean). Run it after every edit of a page; it stops at the first page that is
wrong and names file and line. `--check` only compares with what is on disk. Standard library only.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLEAN = HERE.parent.parent / "tests" / "golden" / "corpus_clean.jsonl"
PAIRS = CLEAN.with_name("corpus_pairs.jsonl")
# Characters of a chunk at most: as inference cuts pages, and shorter, so that cuts fall elsewhere.
CHUNKS = (700, 440)
SHARDS = 4
MIN_CHARS, MAX_CHARS = 400, 12_500
MAX_SOURCE_BYTES = 600_000
QUALITIES = ("high", "low")
FRAGMENT = re.compile("⟦([^⟦⟧]*)⟧")


class PageError(Exception):
    """A page that breaks the source format; the message names file and line."""


def read_sources():
    """Yields (where, url, kind, quality, lines) for every page, in file order."""
    for path in sorted((HERE / "pages").glob("*.txt")):
        head, lines = None, []
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if not line.startswith("%%% "):
                lines.append(line)
                continue
            if head:
                yield (*head, lines)
            elif any(lines):
                raise PageError(f"{path.name}:{number}: text before the first page header")
            fields = [field.strip() for field in line[4:].split("|")]
            if len(fields) != 3:
                raise PageError(f"{path.name}:{number}: a header is '%%% url | kind | quality'")
            head, lines = (f"{path.name}:{number}", *fields), []
        if head:
            yield (*head, lines)


def cut_fragments(line):
    """The line without its ⟦…⟧ parts. Where a cut leaves white space on both sides, one side of it goes."""
    kept = ""
    last = 0
    for match in FRAGMENT.finditer(line):
        kept += line[last : match.start()]
        last = match.end()
        if line[last : last + 1] == " " and (kept == "" or kept.endswith(" ")):
            last += 1
    return (kept + line[last:]).rstrip()


def split_page(lines):
    """Returns (text, clean, removed): the page, the page without clutter, and the clutter by itself."""
    text, clean, removed = [], [], []
    for line in lines:
        if line == "~" or line.startswith("~ "):
            text.append(line[2:])
            removed.append(line[2:])
            continue
        text.append(FRAGMENT.sub(r"\1", line))
        removed.extend(FRAGMENT.findall(line))
        rest = cut_fragments(line)
        if rest or not line.strip():
            clean.append(rest)
    # Where clutter stood between two empty lines, only one of them is needed.
    joined = re.sub(r"\n{3,}", "\n\n", "\n".join(clean))
    return "\n".join(text).strip("\n"), joined.strip("\n"), "".join(removed)


def chunks(lines, most):
    """The page's source lines in runs whose text has at most `most` characters (a longer line stands alone)."""
    run, size = [], 0
    for line in lines:
        length = len(line) + 1
        if run and size + length > most:
            yield run
            run, size = [], 0
        run.append(line)
        size += length
    if run:
        yield run


def pairs(url, lines):
    """Chunks of a page with and without their clutter."""
    for most in CHUNKS:
        for run in chunks(lines, most):
            text, clean, _ = split_page(run)
            if text.strip():
                yield {"url": url, "dirty": text, "clean": clean}


def letters(text):
    """How often each visible character occurs."""
    return Counter("".join(text.split()))


def check_page(where, url, kind, quality, text, clean, removed):
    """Raises PageError if the page breaks a rule of the corpus."""
    host = re.match(r"https?://([^/]+)/", url)
    rules = [
        (host and host.group(1).endswith(".example"), "the url needs a host that ends in .example and a path"),
        (kind and kind == kind.lower(), "the kind is missing or not in lower case"),
        (quality in QUALITIES, f"quality must be one of {QUALITIES}"),
        (MIN_CHARS <= len(text) <= MAX_CHARS, f"{len(text)} characters, outside {MIN_CHARS}..{MAX_CHARS}"),
        (clean.strip(), "nothing is left without the clutter"),
        (not re.search("[⟦⟧]|^~|%%%", text + "\n" + clean, re.M), "a mark is left in the text"),
        (letters(text) == letters(clean) + letters(removed), "text is not clean plus clutter"),
        (in_order(clean, text), "clean is not the text with parts taken out"),
    ]
    for holds, message in rules:
        if not holds:
            raise PageError(f"{where}: {message}")


def in_order(part, whole):
    """Whether the visible characters of `part` occur in `whole` in the same order."""
    rest = iter("".join(whole.split()))
    return all(char in rest for char in "".join(part.split()))


def build():
    """All pages as [(page, clean row, pairs)], checked."""
    rows, seen = [], {}
    for where, url, kind, quality, lines in read_sources():
        text, clean, removed = split_page(lines)
        check_page(where, url, kind, quality, text, clean, removed)
        for key in (url, text):
            if key in seen:
                raise PageError(f"{where}: the same page or url stands at {seen[key]}")
            seen[key] = where
        page = {"url": url, "kind": kind, "quality": quality, "text": text}
        rows.append((page, {"url": url, "clean": clean}, list(pairs(url, lines))))
    return rows


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def report(rows):
    sizes = sorted(len(page["text"]) for page, _, _ in rows)
    kept = sum(len(clean["clean"]) for _, clean, _ in rows)
    whole = sum(page["text"] == clean["clean"] for page, clean, _ in rows)
    print(f"{len(rows)} pages, {sum(sizes)} characters: min {sizes[0]}, median {sizes[len(sizes) // 2]}, "
          f"mean {sum(sizes) // len(sizes)}, max {sizes[-1]}")
    print(f"clean: {kept} characters ({100 * kept / sum(sizes):.1f} %); {whole} pages without clutter")
    print("quality:", dict(Counter(page["quality"] for page, _, _ in rows)))
    for kind, count in sorted(Counter(page["kind"] for page, _, _ in rows).items()):
        print(f"  {kind:<14} {count}")


def main():
    size = sum(path.stat().st_size for path in (HERE / "pages").glob("*.txt"))
    if size > MAX_SOURCE_BYTES:
        raise PageError(f"the sources hold {size} bytes, more than {MAX_SOURCE_BYTES}")
    rows = build()
    files = {HERE / f"pages-{i}.jsonl": jsonl(page for page, _, _ in rows[i::SHARDS]) for i in range(SHARDS)}
    files[CLEAN] = jsonl(clean for _, clean, _ in rows)
    files[PAIRS] = jsonl(pair for _, _, pairs in rows for pair in pairs)
    for path, content in files.items():
        if "--check" not in sys.argv[1:]:
            path.write_text(content, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != content:
            raise PageError(f"{path.name} is not what the sources give: run assets/corpus/build.py")
    report(rows)


if __name__ == "__main__":
    try:
        main()
    except PageError as error:
        sys.exit(f"build.py: {error}")
