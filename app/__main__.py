"""`python -m app`: load the backbone and its adapter, open the page."""

import argparse
import os
import sys

from mmpt.errors import InputError


def main(argv=None):
    parser = argparse.ArgumentParser(prog="app", description="Ask a model about a picture, before and after tuning.")
    parser.add_argument("--backbone", default="tiny", help='"tiny", a folder or a hub id (default: tiny)')
    parser.add_argument("--adapter", default="m2pt", help='shipped name, folder or "none" (default: m2pt)')
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=None, help="default: the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="a public link through Gradio's servers")
    parser.add_argument("--open", action="store_true", help="open the browser")
    args = parser.parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import mmpt
    from app.page import build, launch

    try:
        print("Loading the model (the first time, its weights are converted: half a minute) ...")
        backbone = mmpt.load(args.backbone)
        adapter = None if args.adapter == "none" else backbone.add_adapter(args.adapter)
        page = build(backbone, adapter)
        launch(page, server_name=args.host, server_port=args.port, share=args.share, inbrowser=args.open)
    except (InputError, OSError) as error:
        print(f"app: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
