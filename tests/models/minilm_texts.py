#!/usr/bin/env python3
"""Make texts for four tasks of Debian packages: classes of short passages of manual pages and source code.

    language  which of eleven languages a passage of a manual page is written in
    section   which section of the manual (1, 2, 3, 5, 7, 8) an English passage comes from
    heading   under which heading of its page an English passage stands
    code      in which of eleven languages two lines of code are written

    minilm_texts.py FOLDER [--root DIR]

writes FOLDER/texts/TASK-SPLIT.jsonl with one {"text", "label", "source"} a line, and FOLDER/texts/classes.json, where splits
are train, calibration and test. The packages are fetched with apt-get download and unpacked in FOLDER, nothing is installed;
--root takes another folder with usr/share/man and so on.

A document is a manual page, in whatever language and section, or a source file. All that comes from one is in one split, in
all tasks: its name decides. Passages and lines of code that occur in several documents are left out.
"""
import argparse
import gzip
import hashlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path

LANGUAGES = ["en", "cs", "da", "de", "es", "fr", "it", "nl", "pl", "pt_BR", "sv"]
SECTIONS = ["1", "2", "3", "5", "7", "8"]
HEADINGS = ["SYNOPSIS", "DESCRIPTION", "OPTIONS", "RETURN VALUE", "ERRORS", "NOTES", "EXAMPLES", "SEE ALSO"]
CODE = {  # class: (folder under the root, pattern)
    "c": ("usr/include", r"(linux|asm-generic|sound|drm|rdma)/.*\.h"),
    "c++": ("usr/include/c++", r".*"),
    "go": ("usr/share/gocode", r".*\.go"),
    "javascript": ("usr/share/nodejs", r".*\.js"),
    "perl": ("usr/share/perl", r".*\.p[ml]"),
    "php": ("usr/share/php", r".*\.php"),
    "python": ("usr/lib/python3.11", r".*\.py"),
    "ruby": ("usr/lib/ruby", r".*\.rb"),
    "rust": ("usr/share/cargo", r".*\.rs"),
    "shell": ("usr/share/bash-completion", r"completions/[^/]*"),
    "tcl": ("usr/share/tcltk", r".*\.tcl"),
}
TASKS = {"language": LANGUAGES, "section": SECTIONS, "heading": HEADINGS, "code": list(CODE)}
PACKAGES = """manpages manpages-dev manpages-cs manpages-da manpages-de manpages-es manpages-fr manpages-it manpages-nl
  manpages-pl manpages-pt-br manpages-sv coreutils util-linux git-man systemd iproute2 e2fsprogs openssh-client linux-libc-dev
  libstdc++-12-dev libpython3.11-stdlib perl-modules-5.36 libruby3.1 tcllib golang-golang-x-net-dev librust-regex-dev
  librust-syn-dev node-lodash php-symfony-console php-symfony-http-kernel bash-completion""".split()

SIZES = {"train": 4800, "calibration": 128, "test": 400}
WORDS, LINES, FROM_ONE = 9, 2, 12  # of a passage of prose, of code; passages of one document

# ---- packages ----


def fetch_packages(folder):
    """Download and unpack what is not there yet; the root."""
    debs, root = folder / "packages", folder / "root"
    done = root / ".complete"
    if done.exists() and done.read_text().split() == PACKAGES:
        return root
    debs.mkdir(parents=True, exist_ok=True)
    root.mkdir(exist_ok=True)
    subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=debs, check=True)
    for deb in sorted(debs.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
    done.write_text("\n".join(PACKAGES))
    return root


# ---- manual pages ----

FONT = re.compile(r"\\f(\[[^]]*\]|\([A-Za-z]{2}|.)")
NAMED = {"-": "-", "&": "", "e": "\\", "|": "", "^": "", "~": " ", " ": " ", "/": "", ",": "", "%": "", ":": "", "c": ""}
SPECIAL = {"aq": "'", "dq": '"', "lq": '"', "rq": '"', "oq": "'", "cq": "'", "em": "-", "en": "-", "co": "(c)", "bu": "*",
           "ti": "~", "ha": "^", "ga": "`", "rs": "\\"}  # fmt: skip
FONTS = {"B", "I", "BR", "RB", "BI", "IB", "IR", "RI", "SM", "SB"}


def plain(line):
    """A line of roff without its escapes."""
    line = FONT.sub("", line.split('\\"')[0])
    line = re.sub(r"\\s[-+]?\d+", "", line)
    line = re.sub(r"\\\*?(?:\((..)|\[([^]]*)\])", lambda m: SPECIAL.get(m[1] or m[2], ""), line)
    return re.sub(r"\\(.)", lambda m: NAMED.get(m[1], ""), line)


def joined(words, alternate):
    """The arguments of a font macro: alternating ones stand without spaces."""
    parts = [m[0].strip('"') if m[0].startswith('"') else m[0] for m in re.finditer(r'"[^"]*"|[^\s"]+', words)]
    return ("" if alternate else " ").join(parts)


def read_page(path):
    """[(heading, text)] of a page of the man macros; [] where it only names another, or has other macros."""
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    parts, heading, words, skip = [], None, [], False
    for line in [*lines, ".SH"]:
        macro = re.match(r"[.'][ \t]*([A-Za-z]+)[ \t]*(.*)", line)
        if macro and macro[1] == "SH":
            if heading and words:
                parts.append((heading, " ".join(words)))
            heading, words, skip = plain(macro[2]).strip('" ').upper(), [], False
        elif macro and macro[1] in ("TS", "EQ", "PS", "de", "ig"):
            skip = True
        elif macro and macro[1] in ("TE", "EN", "PE"):
            skip = False
        elif macro and macro[1] in FONTS and not skip:
            words += joined(plain(macro[2]), len(macro[1]) == 2 and macro[1] not in ("SM", "SB")).split()
        elif line.startswith((".", "'")):
            skip = skip and line.strip() != ".."
        elif not skip:
            words += plain(line).split()
    return parts


def pages(root, language):
    """(name, section, parts) of the pages of a language, each once."""
    folder = root / "usr/share/man" / ("" if language == "en" else language)
    for path in sorted(folder.glob("man[1-8]/*.gz")):
        name = re.fullmatch(r"(.+)\.([1-8])[a-z]*\.gz", path.name)
        if name and not path.is_symlink():
            yield name[1], name[2], read_page(path)


def pieces(text):
    words = text.split()
    return [" ".join(words[i : i + WORDS]) for i in range(0, len(words) - WORDS + 1, WORDS)]


def is_prose(piece):
    return sum(c.isalpha() for c in piece) > 0.6 * len(piece)


# ---- the tasks: class → [(document, passages)] ----


def make_prose(root):
    found = {task: {} for task in ("language", "section", "heading")}
    for language in LANGUAGES:
        for name, section, parts in pages(root, language):
            document = "man " + name.lower()
            body = [(h, p) for h, text in parts for p in pieces(text)]
            prose = [p for h, p in body if is_prose(p)]
            found["language"].setdefault(language, []).append((document, prose))
            if language != "en":
                continue
            if section in SECTIONS:
                found["section"].setdefault(section, []).append((document, prose))
            for heading in HEADINGS:
                under = [p for h, p in body if h == heading or h + "S" == heading]
                found["heading"].setdefault(heading, []).append((document, under))
    return found


def code_lines(path):
    text = path.read_text(encoding="utf-8", errors="replace")
    text = re.sub(r"/\*.*?\*/|^=\w.*?^=cut", "", text, flags=re.S | re.M)
    lines = (line.strip() for line in text.splitlines())
    return [line[:120] for line in lines if len(line) > 12 and not line.startswith(("#!", "//", "# ", "--", "*"))]


def make_code(root):
    """Lines that several documents share, as licences and generated code are, are in none."""
    found, seen = {}, {}
    for language, (folder, pattern) in CODE.items():
        top = root / folder
        files = [p for p in sorted(top.rglob("*")) if p.is_file() and not p.is_symlink()]
        files = [p for p in files if re.search(f"(^|/){pattern}$", str(p.relative_to(top)))]
        found[language] = [(f"{folder}/{p.relative_to(top)}", code_lines(p)) for p in files]
        for document, lines in found[language]:
            for line in set(lines):
                seen[line] = seen.get(line, 0) + 1
    for documents in found.values():
        for i, (document, lines) in enumerate(documents):
            own = [line for line in lines if seen[line] == 1]
            documents[i] = document, ["\n".join(own[j : j + LINES]) for j in range(0, len(own) - LINES + 1, LINES)]
    return found


# ---- splits ----


def split_of(document):
    place = int(hashlib.sha256(document.encode()).hexdigest()[:8], 16) % 20
    return "train" if place < 12 else "calibration" if place < 15 else "test"


def choose(documents, split, count, rng):
    """Passages of one class, at most FROM_ONE of a document, none twice."""
    chosen = {}
    for document, passages in documents:
        if split_of(document) == split:
            for passage in rng.sample(passages, min(len(passages), FROM_ONE)):
                chosen.setdefault(passage, document)
    chosen = sorted(chosen.items())
    return rng.sample(chosen, min(count, len(chosen)))


def without_shared(found):
    """Passages that occur in one document alone."""
    seen = {}
    for name, documents in found.items():
        for document, passages in documents:
            for passage in passages:
                seen.setdefault(passage, set()).add((name, document))
    return {n: [(d, [p for p in passages if len(seen[p]) == 1]) for d, passages in documents] for n, documents in found.items()}


def write_task(task, classes, found, folder, sizes):
    for split, size in sizes.items():
        rng = random.Random(f"{task} {split}")
        rows = []
        for label, name in enumerate(classes):
            count = size * (label + 1) // len(classes) - size * label // len(classes)
            rows += [{"text": t, "label": label, "source": s} for t, s in choose(found[name], split, count, rng)]
        rng.shuffle(rows)
        if not rows:
            sys.exit(f"minilm_texts.py: error: {task}: found no texts for {split}")
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{task}-{split}.jsonl").write_text(text, encoding="utf-8")
        documents = len({row["source"] for row in rows})
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        print(f"{task} {split}: {len(rows)} texts of {documents} documents, {len(classes)} classes, {digest}")


def make_texts(root, folder, sizes=SIZES):
    """Write all files to folder/texts."""
    texts = folder / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    found = {**make_prose(root), "code": make_code(root)}
    for task, classes in TASKS.items():
        write_task(task, classes, without_shared(found[task]), texts, sizes)
    (texts / "classes.json").write_text(json.dumps(TASKS, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--root", type=Path, help="take the packages' files from here, download nothing")
    given = parser.parse_args()
    make_texts(given.root or fetch_packages(given.folder), given.folder)


if __name__ == "__main__":
    main()
