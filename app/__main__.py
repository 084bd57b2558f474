"""`python -m app`: load the backbone and its adapter, open the page."""

import argparse
import sys

from mmpt import console
from mmpt.errors import InputError


def serve(args):
    print("Loading the model (the first time, its weights are converted: half a minute) ...", flush=True)
    import mmpt
    from app.page import build, launch
    from app.state import NONE, Studio

    adapters = args.adapter or ["m2pt"] * (args.backbone == "tiny")  # the shipped ones are for the embedded model
    backbone = mmpt.load(args.backbone, quantize=args.quantize)
    studio = Studio(backbone, [adapter for adapter in adapters if adapter != NONE])
    with studio.asking.loaded(*studio.folders):  # a wrong one is told now
        page = build(studio)
    try:
        launch(page, server_name=args.host, server_port=args.port, share=args.share, inbrowser=args.open)
    except (OSError, OverflowError) as error:
        where = f"{args.host}, port {args.port or 'from 7860'}"
        raise InputError(f"The page cannot be served on {where} ({error}); give another --host or --port.") from error


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="app", description="Ask a model about a picture, before and after tuning, and look inside."
    )
    parser.add_argument("--backbone", default="tiny", help='"tiny", a folder or a hub id (default: tiny)')
    parser.add_argument("--quantize", choices=("4bit", "8bit"), help="bits of the LLM's weights")
    parser.add_argument(
        "--adapter",
        action="append",
        help='shipped name, folder or "none" (default: m2pt on tiny, else none); may be given several times',
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="a public link through Gradio's servers")
    parser.add_argument("--open", action="store_true", help="open the browser")
    return console.run("app", serve, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
