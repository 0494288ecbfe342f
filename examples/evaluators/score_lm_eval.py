#!/usr/bin/env python3
"""A command evaluator for nps-merge that scores language models with EleutherAI's lm-evaluation-harness.

    fitness:
      evaluator: command
      command: [python3, examples/evaluators/score_lm_eval.py, --limit, "200"]
      metric: value
      timeout: 3600
      tasks:
        - {name: arc_easy}
        - {name: maths, group: gsm8k}       # another name than the harness's, which is the group
        - {name: code, group: mbpp, model: code}

Every candidate is a complete Hugging Face folder with config.json and the base's tokenizer. The harness looks up its tasks' data
by itself: fetch them before the job starts where its nodes have no network.

Requests come on stdin and answers go to stdout, one JSON object a line; docs/command-evaluator.md has them field by field.
Needs lm_eval (pip install lm_eval), which is imported when the first request comes.
"""

import argparse
import json
import os
import sys
import traceback


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=int, help="score the first LIMIT samples of each task (default: all)")
    parser.add_argument("--batch", default="auto", help="batch size of the harness (default: auto)")
    parser.add_argument("--fewshot", type=int, help="examples before each sample (default: the task's own)")
    parser.add_argument("--dtype", default="auto", help="type in which the model is run (default: auto)")
    parser.add_argument("--device", help="default: a GPU for each process in turn, where there are some, else the CPU")
    parser.add_argument(
        "--metric", action="append",
        help="metric that counts, of several the first that a task has (default: acc_norm, acc, exact_match, pass_at_1)")  # fmt: skip
    return parser.parse_args()


def choose_device():
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('NPS_GROUP', 0)) % torch.cuda.device_count()}"


def value_of(results, metrics):
    """The harness names its figures METRIC,FILTER."""
    for metric in metrics:
        for name, value in results.items():
            if name.split(",")[0] == metric and isinstance(value, (int, float)):
                return float(value)
    raise ValueError(f"expected one of {', '.join(metrics)}, the harness gave {', '.join(results)}")


def answer(request, arguments):
    import lm_eval

    if "holdout" in request:
        raise ValueError("the harness knows of no held-out samples: leave fitness.holdout at 0")
    names = {task: request["about"][task]["group"] for task in request["tasks"]}
    found = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": request["model"], "dtype": arguments.dtype}, tasks=sorted(set(names.values())),
        num_fewshot=arguments.fewshot, batch_size=arguments.batch, limit=arguments.limit,
        device=arguments.device or choose_device())  # fmt: skip
    metrics = arguments.metric or ["acc_norm", "acc", "exact_match", "pass_at_1"]
    scores = {}
    for task, name in names.items():
        samples = found.get("n-samples", {}).get(name, {}).get("effective", 1)
        scores[task] = {"value": value_of(found["results"][name], metrics), "total": max(1, int(samples))}
    return {"id": request["id"], "scores": scores}


def main():
    arguments = parse_arguments()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the harness prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = answer(request, arguments)
        except Exception as error:  # this model counts as the worst, and the next one is another matter
            traceback.print_exc()
            reply = {"id": request["id"], "error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
