"""How questions and answers are written for a model: by its processor's chat template."""

import os

from transformers import PaliGemmaProcessor, ProcessorMixin

from mmpt.errors import InputError


class Chat:
    """What a `Backbone` is to questions and answers."""

    name: str
    processor: ProcessorMixin

    @property
    def _ending(self):
        """The token that ends an answer, and what the chat template leaves to be added so that it does.

        LLaVA-1.5's writes no such token; then it is the tokenizer's own.
        """
        tokenizer = self.processor.tokenizer
        behind = self._written([("?", "\0")], False).partition("\0")[2].lstrip()
        if end := next((end for end in tokenizer.all_special_tokens if behind.startswith(end)), None):
            return end, ""
        if tokenizer.eos_token is None:
            raise InputError(f"The tokenizer of {self.name!r} has no token that ends a text; set its eos_token.")
        return tokenizer.eos_token, tokenizer.eos_token

    @property
    def _between(self):
        """What stands between a question and its answer: as a conversation is written, and as one is asked."""
        said = self._written([("\0", "\1")], False).partition("\0")[2].partition("\1")[0]
        return said, self._written([("\0", None)], True).partition("\0")[2]

    @property
    def _beginning(self):
        """What the tokenizer writes before a text by itself."""
        return self.processor.tokenizer.decode(self.processor.tokenizer("")["input_ids"][:1])

    def conversation(self, turns, add_generation_prompt):
        """A conversation as it is written, each answer with what ends it.

        Args:
            turns: (question, answer) one after the other; the last answer may be None.
            add_generation_prompt: whether to go on up to where the next answer begins.

        Raises:
            InputError: a text holds the picture's mark, or the model knows no chat.
        """
        mark = self.processor.image_token
        if any(mark in text for turn in turns for text in turn if text):
            raise InputError(f"A question or answer holds {mark}, which stands for the picture; leave it out.")
        (_, added), (said, asked) = self._ending, self._between
        text = self._written([(q, a if a is None else a + added) for q, a in turns], add_generation_prompt)
        # Some templates, as LLaVA-OneVision's, write another blank before an answer than they end a question with.
        return text if said.rstrip(" ") == asked.rstrip(" ") else text.replace(said, asked)

    def _written(self, turns, add_generation_prompt):
        messages = []
        for i, (question, answer) in enumerate(turns):
            content = [{"type": "image"}] * (i == 0) + [{"type": "text", "text": question}]
            messages.append({"role": "user", "content": content})
            if answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        if isinstance(self.processor, PaliGemmaProcessor):
            raise InputError(f"{self.name!r}, a PaliGemma, knows no chat: call model and processor themselves.")
        if not self.processor.chat_template:
            raise InputError(
                f"The processor of {self.name!r} has no chat template, so its questions cannot be written; set "
                "backbone.processor.chat_template."
            )
        text = self.processor.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)
        return text.removeprefix(self._beginning)  # which some templates write too

    def answer_tokens(self, answer: str) -> list[int]:
        """The token ids of an answer as it follows a question, with the one that ends it."""
        text, [(start, end)] = self._spans([("?", answer)])
        tokens = self.processor.tokenizer(text, return_offsets_mapping=True)
        return [i for i, (a, b) in zip(tokens["input_ids"], tokens["offset_mapping"]) if a < end and b > start]

    def _spans(self, turns):
        """A conversation as it is written, and where in it each answer with its end begins and ends."""
        text, (end, _), spans = self.conversation(turns, False), self._ending, []
        for i, (question, answer) in enumerate(turns):
            start = len(os.path.commonprefix([text, self.conversation([*turns[:i], (question, None)], True)]))
            answer = answer.strip()
            said = text.find(answer, start)
            stop = text.find(end, said + len(answer))
            if said < 0 or stop < 0 or text[said + len(answer) : stop].strip():
                raise InputError(
                    f"The chat template of {self.name!r} does not write each answer as it is, with what ends it; set "
                    "another backbone.processor.chat_template."
                )
            spans.append((start if answer else stop, stop + len(end)))
        return text, spans

    def question_text(self, question: str) -> str:
        """A question on a picture in the backbone's chat format, up to where the answer begins."""
        return self.conversation([(question, None)], True)
