"""A link that restores a view: seed, question, models and tab stand in the address, as `?seed=4&question=…&tab=…`."""

from collections.abc import Mapping

import gradio as gr

from app.ask import QUESTIONS
from app.pictures import EXAMPLE_SEEDS, KEEP, draw
from app.state import NONE, Studio, alert
from app.whose import name_of
from mmpt.ask import MAX_QUESTION

# `mmptLink` writes names and values into the address without loading the page anew; an empty value goes.
HEAD = """<script>
window.mmptLink = (values) => {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(values)) {
    if (value) url.searchParams.set(name, value); else url.searchParams.delete(name);
  }
  history.replaceState(null, '', url);
};
</script>"""
WRITE = """(place, question, left, right) => {
  const scene = new URLSearchParams(place);
  mmptLink({seed: scene.get('seed'), objects: scene.get('objects'), question, left, right});
}"""
ASK = f"(...given) => {{ window.mmptAsked = (window.mmptAsked || 0) + 1; ({WRITE})(...given); }}"
READ = "() => { window.mmptRead = true; window.mmptAsked = 1; }"
COPY = f"""async (place, ...asked) => {{
  ({WRITE})(place, ...asked);
  const kept = place ? 'Copied.' : 'Copied; but an uploaded picture is in no link.';
  try {{ await navigator.clipboard.writeText(location.href); return kept; }}
  catch {{ return 'The link stands in the address bar; the browser does not let a page copy it.'; }}
}}"""


def write_tab(name: str, first: bool) -> str:
    """Script for when a tab is chosen; the first one is, by nobody, before the link is read."""
    return f"() => {{ if ({'window.mmptRead' if first else 'true'}) mmptLink({{tab: '{name}'}}) }}"


def restore(studio: Studio, tabs: list[str], query: Mapping[str, str]):
    """(picture, truth, origin, problem, question, model A, model B, name of the tab, whether to ask again) of a link.

    What a link does not say, or says wrongly, is as on a fresh page, with a sentence where wrong; its tab is None.
    """
    shown = draw(_number(query.get("seed", EXAMPLE_SEEDS[0])), _number(query.get("objects")) or KEEP)
    if shown[-1]:
        shown = *draw(EXAMPLE_SEEDS[0], KEEP)[:-1], shown[-1]
    question = query.get("question", QUESTIONS[0])[:MAX_QUESTION]
    models = []
    for name, default in ((query.get("left", NONE), NONE), (query.get("right", studio.first), studio.first)):
        if name not in (NONE, *studio.folders):
            gone = f"The model {name!r} of the link is not there, or not any more; {name_of(default)} answers instead."
            shown = *shown[:-1], shown[-1] + alert(gone)
            name = default
        models.append(gr.Dropdown(choices=studio.choices(), value=name))
    tab = query.get("tab")
    return *shown, question, *models, tab if tab in tabs else None, "question" in query


def _number(text):
    """As a number, or -1, which no seed is; None stays."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return -1
