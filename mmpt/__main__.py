"""The command line: `python -m mmpt ask | train | push | evaluate | explain | score | table | bench | scenes`."""

import argparse
import dataclasses
import json
import os
import sys
from functools import partial

from mmpt import console
from mmpt.errors import InputError

# Named here as well as in mmpt.methods, so that --help need not wait for torch.
METHODS = (
    "m2pt", "m2pt-carry", "m2pt-no-interaction", "vpt", "ptum", "aprompt", "prefix-tuning", "prompt-tuning", "lora",
    "mpt4lm", "full",
)  # fmt: skip


def ask(args):
    from mmpt.ask import ask_file, check_batch, check_question, open_picture

    if bool(args.batch) == bool(args.image):
        raise InputError("Give a picture and a question, or --batch FILE.jsonl with --out FILE.jsonl.")
    if args.batch:
        if not args.out:
            raise InputError("--batch needs --out FILE.jsonl for the answers.")
        check_batch(args.batch, args.out)  # a mistake is told before the model is loaded
        n = ask_file(_load(args), args.batch, args.out)
        print(f"{n} answers in {args.out}")
        return
    if args.out:
        raise InputError(f"--out is {args.out}; it goes with --batch FILE.jsonl. One answer is printed.")
    question = check_question(args.question or "")
    image = open_picture(args.image)
    answer = _load(args).answer([image], [question])[0]
    if args.json:
        row = {"image": args.image, "question": question, "answer": answer}
        print(json.dumps(row | {"backbone": args.backbone, "adapter": args.adapter}))
    else:
        print(answer)


def train(args):
    import torch
    from accelerate import PartialState

    from mmpt.hub import check_repo, open_repo, push
    from mmpt.methods import method
    from mmpt.train import TrainConfig, train

    chosen = method(args.method)
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    rates = {name: rate for name, rate in chosen.rates.items() if not (name == "relative_lr" and "lr" in given)}
    config = TrainConfig(**rates | given)
    if args.push_to_hub:
        check_repo(args.push_to_hub)
    # Each process takes its own GPU, before anything is loaded.
    process = PartialState(cpu=not torch.cuda.is_available())
    backbone = chosen.load(args.backbone, quantize=args.quantize)
    on_start = partial(open_repo, args.push_to_hub) if args.push_to_hub else None
    folder = train(backbone, chosen.configure(backbone.processor.tokenizer), config, on_start)
    if process.is_main_process:
        print(f"{chosen.row} in {folder}")
        if args.push_to_hub:
            print(push(folder, args.push_to_hub))


def push(args):
    from mmpt.hub import push

    print(push(args.adapter, args.repo, args.results, args.licence))


def evaluate(args):
    from mmpt.evaluate import evaluate, render
    from mmpt.files import check_writable, write_whole

    if args.json:
        check_writable(args.json)
    result = evaluate(_load(args), args.suite, limit=args.limit, data=args.data, tasks=args.tasks) | {
        "adapter": args.adapter
    }
    print(render(result))
    if args.json:
        write_whole(args.json, json.dumps(result, indent=1) + "\n")


def explain(args):
    from pathlib import Path

    from mmpt.ask import check_question, open_picture
    from mmpt.explain.views import view
    from mmpt.figures import save
    from mmpt.files import check_writable, write_whole

    question, image = check_question(args.question), open_picture(args.image)
    if Path(args.out).suffix.lower() not in (".html", ".png", ".json"):
        raise InputError(f"--out is {args.out}; end it in .html, .png or .json.")
    check_writable(args.out)
    seen = view(_load(args), image, question, args.view, args.answer, args.word)
    if args.out.lower().endswith(".json"):
        write_whole(args.out, seen.json())
    else:
        save(seen.figure, args.out)
    print("\n".join([f"Answer: {seen.answer}", *seen.sentences, f"Written to {args.out}"]))


def score(args):
    from mmpt.files import check_writable, write_whole
    from mmpt.predictions import read_answered
    from mmpt.scoring import render, score

    if args.json:
        check_writable(args.json)
        if os.path.realpath(args.json) == os.path.realpath(args.file):
            raise InputError(f"{args.json} holds the predictions; give another file for the result.")
    result = {"metric": args.metric} | score(args.metric, read_answered(args.metric, args.file), args.parser)
    print(render(result))
    if args.json:
        write_whole(args.json, json.dumps(result, indent=1) + "\n")


def table(args):
    from pathlib import Path

    from mmpt.experiments import run_table
    from mmpt.rows import BUDGETS
    from mmpt.table import summarise, write

    name = "quick" if args.quick and args.name in (None, "main") else args.name or "main"
    budget = BUDGETS.get(name) or BUDGETS["quick" if args.quick else "full"]
    results = Path(args.results) / budget.name
    found = run_table(name, budget, results, Path(args.work) / budget.name)
    folder = results if name in ("main", budget.name) else results / name
    folder.mkdir(exist_ok=True)
    print(write([summarise(*row) for row in found], folder), end="")


def bench(args):
    import platform

    import torch

    from mmpt.backbones import load
    from mmpt.bench import FULL, QUICK, bench, render
    from mmpt.figures import save
    from mmpt.files import check_writable, write_whole
    from mmpt.fit import largest_step
    from mmpt.growth import BASE, figure, growth

    if args.fit is not None:
        pictures = largest_step(load(args.backbone, quantize=args.quantize), args.fit)
        print(f"{pictures} pictures a step fit into {args.fit:g} GiB")
        return
    if args.quantize:
        raise InputError("--quantize goes with --fit GIB only: what is timed is held to the frozen model as it is.")
    if args.growth and not args.growth.lower().endswith((".html", ".png")):
        raise InputError(f"--growth is {args.growth}; end it in .html or .png.")
    for file in filter(None, (args.json, args.growth)):
        check_writable(file)
    work = BASE if args.growth else QUICK if args.quick else FULL
    rows = growth(args.backbone) if args.growth else bench(args.backbone, work)
    if args.json:
        machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
        result = {"backbone": args.backbone} | dataclasses.asdict(work) | machine | {"rows": rows}
        write_whole(args.json, json.dumps(result, indent=1) + "\n")
    if args.growth:
        save(figure(rows), args.growth)
    print(args.growth or render(rows))


def scenes(args):
    from mmpt.scenes import write_scenes

    if args.n < 1:
        raise InputError(f"--n is {args.n}; give a number of at least 1.")
    if not 0 <= args.seed <= 2**32 - args.n:
        raise InputError(f"--seed is {args.seed}; give one from 0 to {2**32 - args.n}: others train and test models.")
    if args.size > 4096:
        raise InputError(f"--size is {args.size}; give one from 56 to 4096 pixels.")
    try:
        path = write_scenes(args.out, args.n, args.seed, args.size)
    except OSError as error:
        raise InputError(f"{args.out} cannot be written ({error.strerror}); give another --out.") from error
    except ValueError as error:
        raise InputError(str(error)) from error
    print(f"{args.n} scenes and {path}")


def _load(args):
    import mmpt

    if args.adapter is None:  # the shipped ones are for the embedded model
        args.adapter = "m2pt" if args.backbone == "tiny" else "none"
    return mmpt.load(args.backbone, adapter=None if args.adapter == "none" else args.adapter, quantize=args.quantize)


def parser():
    parser = argparse.ArgumentParser(prog="mmpt", description="Multimodal prompt tuning: ask, tune, measure.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(run, help):
        sub = commands.add_parser(run.__name__, help=help, description=help)
        sub.set_defaults(run=run)
        if run not in (push, scenes, score, table):
            names = '"tiny", "tiny-t5" (MPT4LM), a folder or a hub id (default: tiny)'
            sub.add_argument("--backbone", default="tiny", help=names)
            sub.add_argument("--quantize", choices=("4bit", "8bit"), help="bits of the LLM's weights")
        if run in (ask, explain):
            sub.add_argument("--adapter", help='shipped name, folder or "none" (default: m2pt on tiny, else none)')
        if run is evaluate:
            sub.add_argument("--adapter", default="none", help='shipped name, folder or "none" (default: none)')
        return sub

    sub = command(ask, "Ask a question about a picture.")
    sub.add_argument("image", nargs="?")
    sub.add_argument("question", nargs="?")
    sub.add_argument("--json", action="store_true", help="print a JSON object")
    sub.add_argument("--batch", metavar="FILE", help="JSONL with id, image, question a line")
    sub.add_argument("--out", metavar="FILE", help="JSONL for id, answer")

    sub = command(train, "Tune an adapter on scenes, or on pictures of your own.")
    sub.add_argument("--method", choices=METHODS, required=True)
    sub.add_argument("--out", required=True, metavar="DIR")
    sub.add_argument("--steps", type=int)
    sub.add_argument(
        "--data",
        metavar="FOLDER|FILE.json",
        help="pictures with one .jsonl file (image, question, answer a line), or LLaVA's or Vision-Flan's JSON "
        "(default: scenes)",
    )
    sub.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="kinds of questions on scenes; one named twice comes twice as often (default: all, which are 37)",
    )
    sub.add_argument("--start", metavar="ADAPTER", help="go on tuning from a shipped adapter or a folder")
    sub.add_argument("--pictures", type=int, help="pictures a step")
    sub.add_argument("--lr", type=float, help="peak learning rate (default: the method's own)")
    sub.add_argument("--relative-lr", type=float, help="instead, of prompts: peak step as a share of their size")
    sub.add_argument("--projector-lr", type=float)
    sub.add_argument("--accumulate", type=int, help="parts that a step's pictures are cut into, to save memory")
    sub.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="of the frozen weights (default: bf16 on a CPU with units for it, else as loaded)",
    )
    sub.add_argument("--gradient-checkpointing", action="store_true", help="compute activations twice, to save memory")
    sub.add_argument("--save-every", type=int, metavar="STEPS")
    sub.add_argument("--report-to", choices=("tensorboard", "wandb"), help="gets what log.jsonl gets")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the adapter in the end, with a model card")
    sub.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")

    sub = command(push, "Upload an adapter, or a whole tuned model, to the hub, with a model card.")
    sub.add_argument("adapter", help="shipped name, or folder of a finished run")
    sub.add_argument("repo", metavar="OWNER/NAME")
    sub.add_argument("--results", nargs="+", default=[], metavar="FILE", help="of evaluate --json, for the card")
    sub.add_argument("--licence", metavar="NAME", help="as the hub calls it (default: apache-2.0 on tiny, else open)")

    sub = command(evaluate, "Measure on fresh scenes, or on a benchmark itself.")
    sub.add_argument("--suite", required=True, help="base, tasks, mini, mpt4lm, one of their suites, or mme, pope, …")
    sub.add_argument("--data", metavar="FOLDER", help="copy of the benchmark (default: from the hub)")
    sub.add_argument("--tasks", nargs="+", default=["all"], metavar="TASK", help="of the suite tasks (default: all)")
    sub.add_argument("--limit", type=int, help="scenes (base), questions a task (tasks), a subtask or a split")
    sub.add_argument("--json", metavar="FILE")

    sub = command(explain, "Show what an answer came from.")
    sub.add_argument("image")
    sub.add_argument("question")
    sub.add_argument(
        "--view",
        choices=("attention", "attribution", "interaction", "cross-attention"),
        default="attribution",
        help="the last of MPT4LM, the others of all that has a projector (default: attribution)",
    )
    sub.add_argument("--word", help="cross-attention: a word of the question, to see the patches that it leads to")
    sub.add_argument("--answer", help="explain this answer (default: the one that the model gives)")
    sub.add_argument("--out", required=True, metavar="FILE", help=".html, .png or .json")

    sub = command(score, "Score a file of predictions as a benchmark's own tool does.")
    sub.add_argument("file", help="mme: subtask.txt, tab-separated; others: JSONL with id, prediction, answer(s)")
    sub.add_argument("--metric", required=True, choices=("mme", "pope", "vqa", "gqa", "vsr", "snli_ve"))
    sub.add_argument("--parser", choices=("strict", "official"), default="strict", help="how answers are read")
    sub.add_argument("--json", metavar="FILE")

    sub = command(table, "Tune and measure what is missing of a table, and write it.")
    sub.add_argument("name", nargs="?", help="main (default), or an ablation: components, lengths, location, …")
    sub.add_argument(
        "--quick", action="store_true", help="a small budget; main: three rows, in ten minutes; mpt4lm has its own"
    )
    sub.add_argument("--results", default="assets/results", metavar="DIR", help="results (default: assets/results)")
    sub.add_argument("--work", default="runs", metavar="DIR", help="adapters and checkpoints (default: runs)")

    sub = command(bench, "Time a training step and an answer of every method beside the frozen model's.")
    sub.add_argument("--quick", action="store_true", help="a smaller step, fewer rounds")
    sub.add_argument(
        "--growth", metavar="FILE", help="instead: how a step grows with its parts, as a figure (.html, .png)"
    )
    sub.add_argument(
        "--fit", type=float, metavar="GIB", help="instead: how many pictures a step of M²PT fit into a GPU's memory"
    )
    sub.add_argument("--json", metavar="FILE")

    sub = command(scenes, "Draw scenes with their exact truth.")
    sub.add_argument("--n", type=int, default=8)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--size", type=int, default=112, help="side in pixels (default: 112)")
    sub.add_argument("--out", required=True, metavar="DIR")
    return parser


def main(argv=None):
    args = parser().parse_args(argv)
    return console.run("mmpt", args.run, args)


if __name__ == "__main__":
    sys.exit(main())
