from contextlib import contextmanager

from mmpt import demo
from mmpt.scenes import make_scene


class Parrot:
    """Answers with the truth when tuned, else with a long sentence."""

    tuned = True

    @contextmanager
    def use(self, adapter):
        self.tuned = False
        yield self
        self.tuned = True

    def answer(self, images, questions, max_new_tokens):
        scenes = map(make_scene, demo.SEEDS)
        truths = {(s.image.tobytes(), q.question): q.answer for s in scenes for q in demo.questions(s)}
        answers = [truths[image.tobytes(), question] for image, question in zip(images, questions)]
        return answers if self.tuned else [f"I see {a} and so much more that it needs a line more" for a in answers]


def test_scenes_leave_no_doubt():
    for seed in demo.SEEDS:
        scene = make_scene(seed)
        assert not scene.digit and not scene.word
        assert len({thing.name for thing in scene.objects}) == len(scene.objects) == 3
        assert all(question.answer for question in demo.questions(scene))


def test_table(monkeypatch, capsys):
    monkeypatch.setattr("mmpt.load", lambda name, adapter: Parrot(), raising=False)
    demo.run()
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert "Right: 0 of 12 before tuning, 12 of 12 after." in printed
    assert printed.splitlines()[-1].endswith("make app")
