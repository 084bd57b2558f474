"""The page: its tabs put together, and how it is served."""

import gradio as gr

from app import ask, attention, attribution, export, interaction, link, prompts, table, tune
from app.state import Studio

INTRO = """# mmpt: ask before and after prompt tuning
The same small multimodal model answers twice: as it was, and with a few learned prompts in every layer. Choose, draw
or upload a picture, ask, and compare; then look inside."""
FOOTER = """Pictures of objects: [OpenMoji](https://openmoji.org) 17, CC BY-SA 4.0. \
Language model: SmolLM2-135M-Instruct, Apache-2.0."""
CSS = """
.answer textarea {font-size: 1.15rem}
.message:not(:has(p)) {display: none}
.message p {border-left: 4px solid #b42318; padding: .5rem .75rem; font-weight: 600}
.examples .grid-wrap {min-height: 0 !important}
.examples .grid-container {grid-template: none / repeat(auto-fill, minmax(76px, 1fr)) !important}
.examples .thumbnail-item {aspect-ratio: 1; height: auto}
.js-plotly-plot :is([class*=title], [class*=tick] text, .cbaxis text, .legendtext, .annotation-text)
{fill: var(--body-text-color) !important}
.strip :is(.token, .text, .legend-item) {color: var(--body-text-color) !important}
.wide {overflow-x: auto !important}
.wide .js-plotly-plot {min-width: 720px}
"""
LOOKS = {"prompts": prompts, "attention": attention, "attribution": attribution, "interaction": interaction}
TABS = ("ask", "prompts", "attention", "attribution", "interaction", "tune", "table")


def build(studio: Studio) -> gr.Blocks:
    """The page over a loaded model."""
    with gr.Blocks(title="mmpt", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown(INTRO)
        asked, rated, again, current = gr.State(), gr.State({}), gr.State(False), gr.State(TABS[0])
        with gr.Tabs() as tabs:
            items = {}
            for name in TABS:
                with gr.Tab(name.capitalize(), id=name) as items[name]:
                    # First, since what one event starts runs in order, and the rest may take a while.
                    items[name].select(None, None, None, js=link.write_tab(name, first=name == TABS[0]))
                    items[name].select(lambda name=name: name, None, current, queue=False, show_progress="hidden")
                    if name == "ask":
                        parts = ask.tab(studio, asked, rated, link.ASK)
                        with gr.Row():
                            copy = gr.Button("Copy a link to this", size="sm", min_width=110)
                            message = gr.HTML(elem_classes="message", render=False)
                            export.button("Save answers (JSON)", export.save_answers, [asked, rated], message)
                        message.render()
                        copied = gr.Markdown()
                    elif name == "tune":
                        start = tune.tab(studio, parts["models"])
                    elif name == "table":
                        table.tab()
                    elif name in ("attention", "attribution"):
                        LOOKS[name].tab(studio, asked, items[name], current)
                    else:
                        LOOKS[name].tab(studio, asked, items[name])
        gr.Markdown(FOOTER)
        copy.click(None, [parts["place"], parts["question"], *parts["models"]], copied, js=link.COPY)

        def restore(request: gr.Request):
            starts = gr.Dropdown(choices=tune.starts(studio))
            return *link.restore(studio, TABS, request.query_params), starts

        def ask_again(again, *given):
            if again:
                yield from ask.ask(studio, *given)

        tab = gr.State()
        opened = page.load(
            restore, None, [*parts["new"], parts["question"], *parts["models"], tab, again, start],
            show_progress="hidden",
        )  # fmt: skip
        opened.then(None, js=link.READ)
        asks = parts["asks"] | {"fn": ask_again, "inputs": [again, *parts["asks"]["inputs"]]}
        answered = opened.then(**asks, api_visibility="private")

        def choose(name):
            return gr.Tabs(selected=name) if name else gr.skip()

        answered.success(choose, tab, tabs, show_progress="hidden", api_visibility="private")
        rated_again = answered.success(**parts["rates"], api_visibility="private")
        gr.on(parts["other"], None, cancels=[answered, rated_again], show_progress="hidden")
    return page.queue(default_concurrency_limit=4, max_size=64)


def launch(page: gr.Blocks, **options) -> None:
    """Serve the page; `options` go to `gr.Blocks.launch`."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.launch(
        theme=theme, css=CSS, head=link.HEAD, max_file_size="16mb", footer_links=[], run_history=False, ssr_mode=False,
        **options,
    )  # fmt: skip
