#!/usr/bin/env python3
"""Turn texts into calibration data: one group of an HDF5 file, made with a model's Hugging Face tokenizer.

    prepare_data.py --tokenizer MODEL --out data.h5 --group NAME [options] FILE...

FILE is plain text, or JSON lines (.jsonl) with one object a sample. Its keys say what it is:

    {"text": "..."}                                      a text for decoders: tokens of all texts follow each other, with the
                                                         end-of-text token between them, in rows of --length
    {"text": "...", "text2": "...", "label": 1}          a text, or two (text2 may be missing), and its class
    {"context": "...", "choices": ["...", ...], "label": 0}   multiple choice: answers, and the number of the right one
    {"context": "...", "answer": "..."}                  an answer that must be given word by word (exact_match)

An answer follows its context after a space, as in lm-evaluation-harness; --norm scores choices by acc_norm, with the number
of letters for the length. With a model that has an encoder and a decoder (T5) the encoder sees the context and the decoder is
asked for the answers; to match exactly, they end with the end-of-text token. --tokens counts the tokens of answers one by
one (accuracy, nll) instead of whole answers. Rows that are longer than --length lose their beginning, classified texts their
end. A plain text file is one text.
Needs h5py, NumPy and transformers; nothing is downloaded.
"""
import argparse
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

try:
    import h5py
    import numpy as np
    import transformers
except ModuleNotFoundError as error:
    sys.exit(f"prepare_data.py: {error}; install it with: pip install {error.name}")

NOT_ASKED = -100
KINDS = [{"context", "choices", "label"}, {"context", "answer"}, {"text", "label"}, {"text"}]


def fail(message):
    sys.exit(f"prepare_data.py: error: {message}")


def arguments():
    head, _, tail = __doc__.partition("\n\n")
    p = argparse.ArgumentParser(description=head, epilog=tail, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("files", nargs="+", metavar="FILE")
    p.add_argument("--tokenizer", required=True, metavar="MODEL", help="folder of a model with its tokenizer")
    p.add_argument("--out", required=True, metavar="FILE", help="HDF5 file; groups are added to it")
    p.add_argument("--group", required=True, metavar="NAME", help="the task's group")
    p.add_argument("--length", type=int, default=512, metavar="N", help="most tokens of a row (512)")
    p.add_argument("--samples", type=int, default=0, metavar="N", help="most samples (0: all)")
    p.add_argument("--norm", action="store_true", help="multiple choice: acc_norm instead of acc")
    p.add_argument("--tokens", action="store_true", help="answers: count their tokens instead of exact_match")
    given = p.parse_args()
    if given.length < 2:
        p.error("--length: expected 2 or more")
    return given


def read_samples(path):
    try:
        with open(path, encoding="utf-8") as file:
            if not path.endswith((".jsonl", ".json")):
                return [{"text": file.read()}]
            return [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError) as error:
        fail(f"{path}: {error}")


def find_kind(samples):
    """The keys that all samples have."""
    for kind in KINDS:
        if all(isinstance(s, dict) and kind <= set(s) for s in samples):
            return kind
    fail("expected the same keys in all samples: text; text and label; context and answer; context, choices and label")


def fill(rows, value, length):
    """Rows of one length, filled up behind."""
    out = np.full((len(rows), length), value, np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def padding(tokenizer):
    return 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def packed(tokenizer, samples, given):
    """Rows of exactly the length; what is left over at the end is dropped."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [t for s in samples for t in [*tokenizer(s["text"], add_special_tokens=False)["input_ids"], *end]]
    rows = len(ids) // given.length
    if rows == 0:
        fail(f"{len(ids)} tokens in all texts are less than one row of {given.length}; see --length")
    rows = min(rows, given.samples or rows)
    return {"input_ids": np.array(ids[: rows * given.length], np.int32).reshape(rows, given.length)}


def classified(tokenizer, samples, given):
    rows = [tokenizer(s["text"], s.get("text2"), truncation=True, max_length=given.length) for s in samples]
    length = max(len(row["input_ids"]) for row in rows)
    data = {"labels": np.array([s["label"] for s in samples], np.int32)}
    for name, value in (("input_ids", padding(tokenizer)), ("attention_mask", 0), ("token_type_ids", 0)):
        if name in rows[0]:
            data[name] = fill([row[name] for row in rows], value, length)
    return data


def continued(tokenizer, context, answer, given):
    """Tokens of both, and how many of them are the answer's: those behind the context's own. Spaces at the end of the
    context belong to the answer, as tokenizers put them there."""
    text = context.rstrip()
    answer = (context[len(text) :] or " ") + answer
    ids = tokenizer(text + answer)["input_ids"]
    before = len(tokenizer(text)["input_ids"])
    special = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    if before and tokenizer(text)["input_ids"][-1] in special and text:
        fail("this tokenizer puts a token behind each text: it is not that of a decoder, whose answers are scored")
    count = len(ids) - before
    if before == 0:  # something must come before the first token that is asked for
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if first is None:
            fail("a sample has no context, and this tokenizer no token to begin a text with")
        ids = [first, *ids]
    if count < 1 or count >= given.length:
        fail(f"answer {answer!r}: expected 1 to {given.length - 1} tokens of its own, found {count}")
    return ids[-given.length :], count


def count_choices(samples):
    choices = len(samples[0]["choices"])
    if any(len(s["choices"]) != choices for s in samples):
        fail("expected the same number of choices in all samples")
    return choices


def labels_and_lengths(samples, given):
    data = {"labels": np.array([s["label"] for s in samples], np.int32)}
    if given.norm:
        data["lengths"] = np.array([[max(len(c), 1) for c in s["choices"]] for s in samples], np.int32)
    return data


def chosen(tokenizer, samples, given):
    choices = count_choices(samples)
    texts = [continued(tokenizer, s["context"], c, given) for s in samples for c in s["choices"]]
    length = max(len(ids) for ids, _ in texts)
    shape = (len(samples), choices, length)
    answer = [[0] * (len(ids) - count) + [1] * count for ids, count in texts]
    return {
        "input_ids": fill([ids for ids, _ in texts], padding(tokenizer), length).reshape(shape),
        "attention_mask": fill([[1] * len(ids) for ids, _ in texts], 0, length).reshape(shape),
        "answer_mask": fill(answer, 0, length).reshape(shape),
        **labels_and_lengths(samples, given),
    }


def answered(tokenizer, samples, given):
    texts = [continued(tokenizer, s["context"], s["answer"], given) for s in samples]
    length = max(len(ids) for ids, _ in texts)
    labels = [[NOT_ASKED] * (len(ids) - count) + ids[-count:] for ids, count in texts]
    return {
        "input_ids": fill([ids for ids, _ in texts], padding(tokenizer), length),
        "attention_mask": fill([[1] * len(ids) for ids, _ in texts], 0, length),
        "labels": fill(labels, NOT_ASKED, length),
    }


# ---- encoder and decoder ----


def has_encoder(model):
    """Whether the model has an encoder besides its decoder; a tokenizer alone has none."""
    try:
        return bool(getattr(transformers.AutoConfig.from_pretrained(model), "is_encoder_decoder", False))
    except (OSError, ValueError):
        return False


def contexts(tokenizer, samples, given):
    rows = [tokenizer(s["context"])["input_ids"][-given.length :] for s in samples]
    if not all(rows):
        fail("a sample has no context")
    length = max(map(len, rows))
    return {
        "input_ids": fill(rows, padding(tokenizer), length),
        "attention_mask": fill([[1] * len(row) for row in rows], 0, length),
    }


def targets(tokenizer, answers, given, end):
    """Tokens of answers, with the end-of-text token where they must end."""
    rows = [tokenizer(text_target=answer, add_special_tokens=False)["input_ids"] for answer in answers]
    if end and tokenizer.eos_token_id is not None:
        rows = [[*row, tokenizer.eos_token_id] for row in rows]
    for answer, row in zip(answers, rows):
        if not 1 <= len(row) <= given.length:
            fail(f"answer {answer!r}: expected 1 to {given.length} tokens, found {len(row)}")
    return fill(rows, NOT_ASKED, max(map(len, rows)))


def targets_chosen(tokenizer, samples, given):
    choices = count_choices(samples)
    ids = targets(tokenizer, [c for s in samples for c in s["choices"]], given, end=False)
    data = contexts(tokenizer, samples, given)
    data["target_ids"] = ids.reshape(len(samples), choices, -1)
    return {**data, **labels_and_lengths(samples, given)}


def targets_answered(tokenizer, samples, given):
    ids = targets(tokenizer, [s["answer"] for s in samples], given, end=True)
    return {**contexts(tokenizer, samples, given), "labels": ids}


def make(tokenizer, samples, given, encoder):
    """(datasets, metric)"""
    kind = find_kind(samples)
    if encoder and "context" not in kind:
        fail("a model with encoder and decoder needs contexts with choices or answers")
    if kind == {"text"}:
        return packed(tokenizer, samples, given), None
    samples = samples[: given.samples or None]
    if "choices" in kind:
        data = (targets_chosen if encoder else chosen)(tokenizer, samples, given)
        return data, "acc_norm" if given.norm else "acc"
    if "answer" in kind:
        data = (targets_answered if encoder else answered)(tokenizer, samples, given)
        return data, None if given.tokens else "exact_match"
    return classified(tokenizer, samples, given), None


def main():
    given = arguments()
    samples = [s for path in given.files for s in read_samples(path)]
    if not samples:
        fail("there is no sample")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(given.tokenizer)
    except (OSError, ValueError) as error:
        fail(f"{given.tokenizer}: no tokenizer: {error}")
    data, metric = make(tokenizer, samples, given, has_encoder(given.tokenizer))
    with h5py.File(given.out, "a") as file:
        if given.group in file:
            fail(f"{given.out}: there is a group {given.group} already")
        for name, value in data.items():
            file.create_dataset(f"{given.group}/{name}", data=value, compression="gzip")
        if metric:
            file[given.group].attrs["metric"] = metric
    print(f"{given.out}: {given.group}: " + ", ".join(f"{name} {list(value.shape)}" for name, value in data.items()))


if __name__ == "__main__":
    main()
