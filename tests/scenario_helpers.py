"""Small local tokenizers and source files for the tests of scenarios."""

from __future__ import annotations

import textwrap
from functools import lru_cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast


def java_file(number: int) -> str:
    """A class with every kind of span, unlike that of any other number."""
    return textwrap.dedent(
        f"""\
        package demo.part{number};

        import java.util.List;

        /* Not code: a + b == c; if (x.y) {{ z += 1; }} "text" true 42 */
        public class Box{number} {{
            private static final String NAME = "box {number}; a + b";
            private int total{number} = {number};

            public boolean grow{number}(List<String> names, int limit) {{
                // Not code either: i++; return false;
                for (int i = {number}; i < limit; i++) {{
                    total{number} += i * {number + 3};
                    names.add("item{number}");
                }}
                if (total{number} == limit && !names.isEmpty()) {{
                    return true;
                }}
                return compute{number}(limit - {number}, 'c');
            }}
        }}
        """
    )


def python_file(number: int) -> str:
    """A module with every kind of span, unlike that of any other number."""
    return textwrap.dedent(
        f'''\
        """Not code: a + b == c; if x.y: z += 1; True 42"""
        import os.path

        class Box{number}:
            def grow{number}(self, names, limit):
                # Not code either: i += 1; return False
                total{number} = {number}
                for name in names:
                    total{number} += len(name) * {number + 3}
                    names.append("item{number}")
                if total{number} == limit and not names:
                    return True
                return os.path.join(f"{{total{number} + 1}}", str(limit - {number}))
        '''
    )


@lru_cache
def _trained(vocab_size: int = 500) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [make(number) for number in range(20) for make in (java_file, python_file)]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def byte_level_tokenizer(
    special_tokens: tuple[str, ...] = (), bos: str | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as GPT-2's and most code models' are."""
    tokenizer = Tokenizer.from_str(_trained())
    extra = (*special_tokens, *((bos,) if bos else ()))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in extra])
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos)


def sentencepiece_like_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE tokenizer that writes blanks as ▁ and unknown characters as bytes, as Llama 2's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (word for number in range(20) for word in java_file(number).split("\n")), trainer
    )
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
