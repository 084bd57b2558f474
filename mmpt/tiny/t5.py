"""A T5 of our own, taught nothing but the language of scenes: `python -m mmpt.tiny.t5 --out DIR`.

MPT4LM's other LLM is Flan-T5, which needs the hub. This one is small enough to come along: it answers the tuning
tasks' questions about a picture from the picture's *description*, in words, and has never met a vision encoder. It
knows two thousand pieces of words and no other subject.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.trainer_utils import get_last_checkpoint

from mmpt.mpt4lm.backbone import PLAIN_TEMPLATE
from mmpt.scenes import SEEDS, make_scene
from mmpt.tasks import TASKS, ask_about, correct, questions_of
from mmpt.tiny.describe import QUESTIONS, describe

PIECES = 2048


def question_on(description: str, question: str) -> str:
    """What the encoder reads. Under MPT4LM visual prompts stand in the description's place."""
    return f"{description}\n" + PLAIN_TEMPLATE.replace("{{ messages[0]['content'] }}", question)


def make_tokenizer(texts) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `PIECES` pieces, learned from the texts; as T5's it puts </s> behind a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model() -> T5ForConditionalGeneration:
    """Four and four blocks of width 192: 3.9 M parameters, drawn at random."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=PIECES,
            d_model=192,
            d_kv=32,
            num_heads=6,
            d_ff=384,
            num_layers=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


class SceneTexts(Dataset):
    """`n` questions with their answers, each on the description of another scene.

    Of every four batches one asks for the description itself: what answers with words that it has read must learn to
    copy. It is a batch of its own, since the answers are long.
    """

    def __init__(self, n: int, first: int, batch: int, tokenizer: PreTrainedTokenizerFast | None = None):
        self.n, self.first, self.batch, self.tokenizer = n, first, batch, tokenizer

    def __len__(self):
        return self.n

    def text(self, i: int) -> tuple[str, str]:
        """(what is read, what is to be said)"""
        scene = make_scene(self.first + i)
        if i // self.batch % 4 == 0:
            return question_on(describe(scene), QUESTIONS[i % len(QUESTIONS)]), describe(scene)
        (question,) = ask_about(scene, random.Random(scene.seed), 1)
        return question_on(describe(scene), question.question), question.answer

    def __getitem__(self, i):
        read, said = self.text(i)
        return {**self.tokenizer(read), "labels": self.tokenizer(said)["input_ids"]}


def pretrain(out: Path, steps: int = 1200, batch: int = 64, seed: int = 0, save_every: int = 200) -> None:
    """Teach it; goes on from the last checkpoint in `out`, where the finished model and its tokenizer come to lie."""
    torch.manual_seed(seed)
    texts = SceneTexts(steps * batch, SEEDS["base"] + (seed << 24), batch)
    tokenizer, model = make_tokenizer(" ".join(texts.text(i)) for i in range(min(len(texts), 20_000))), make_model()
    texts.tokenizer = tokenizer
    arguments = Seq2SeqTrainingArguments(
        out,
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        save_steps=save_every,
        save_total_limit=2,
        logging_steps=20,
        seed=seed,
        train_sampling_strategy="sequential",  # the seeds follow each other at random already
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Seq2SeqTrainer(
        model, arguments, train_dataset=texts, data_collator=DataCollatorForSeq2Seq(tokenizer, model)
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(out) if out.is_dir() else None)
    model.config.use_cache = True  # the trainer had turned it off
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)


@torch.inference_mode()
def evaluate(folder: Path, n: int = 20) -> dict[str, float]:
    """Per cent of `n` fresh questions of each task that it answers right from the description, and their mean."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    found = {}
    for number, name in enumerate(TASKS):
        asked = questions_of(name, n, SEEDS["base_test"] + (number << 20))
        texts = [question_on(describe(scene), question.question) for scene, question in asked]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        answers = tokenizer.batch_decode(model.generate(**batch, max_new_tokens=40), skip_special_tokens=True)
        found[name] = 100 * sum(correct(q, a.strip()) for (_, q), a in zip(asked, answers)) / n
    return found | {"mean": round(sum(found.values()) / len(found), 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pretrain(args.out, args.steps, args.batch, args.seed)
    print(json.dumps(evaluate(args.out), indent=1))


if __name__ == "__main__":
    main()
