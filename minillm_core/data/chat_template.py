"""The training's template as a chat template, for everybody who opens the exported student.

Programs render conversations by the tokenizer's chat template. Of a student that was trained with ``plain`` or
``alpaca`` the template that its teacher's tokenizer brings is another, or there is none.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from minillm_core.data.templates import PREAMBLE, Template, encode_prompt

_TOLD = "{{#- the template {} of minillm -#}}"
_PROBES = ("The quick brown fox.", "1234 lines", "\tif x:\n", "Ünï 東京")

# Earlier messages are joined as in a prompt of the training; an answer that is complete follows its prompt directly.
_PLAIN = """
{%- for message in messages -%}
{%- set answer = loop.last and not loop.first and message['role'] == 'assistant' and not add_generation_prompt -%}
{{- PREFIX if loop.first else ('' if answer else '\\n\\n') -}}
{{- message['content'] -}}
{%- if answer -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
"""
_ALPACA = """
{%- set said = namespace(preamble=PREAMBLE, systems=0, asked=0, instruction='', answer=none) -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set said.preamble = message['content'] -%}
{%- set said.systems = said.systems + 1 -%}
{%- elif loop.last and said.asked == 1 and message['role'] == 'assistant' and not add_generation_prompt -%}
{%- set said.answer = message['content'] -%}
{%- else -%}
{%- set said.instruction = message['content'] -%}
{%- set said.asked = said.asked + 1 -%}
{%- endif -%}
{%- endfor -%}
{%- if said.asked != 1 or said.systems > 1 -%}
{{- raise_exception('this model was trained with the alpaca template, which takes one user message') -}}
{%- endif -%}
{{- PREFIX + said.preamble + '\\n\\n### Instruction:\\n' + said.instruction + '\\n\\n### Response:\\n' -}}
{%- if said.answer is not none -%}{{- said.answer + eos_token -}}{%- endif -%}
"""


def chat_template_of(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """The Jinja chat template that renders a conversation as the training did, start token included.

    Under ``chat`` it is the tokenizer's own, the default one where it has several.
    """
    if template == "chat":
        return str(tokenizer.get_chat_template())
    body = _PLAIN if template == "plain" else _ALPACA.replace("PREAMBLE", _quoted(PREAMBLE))
    return _TOLD.format(template) + body.strip().replace("PREFIX", _quoted(_prefix(template, tokenizer)))


def trained_with(chat_template: object) -> Template:
    """Which template a student's chat template stands for."""
    for template in ("plain", "alpaca"):
        if isinstance(chat_template, str) and chat_template.startswith(_TOLD.format(template)):
            return template  # type: ignore[return-value]
    return "chat"


def _prefix(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a chat template must write for the tokens that the tokenizer itself puts before a text."""
    wanted = [encode_prompt(text, template, tokenizer) for text in _PROBES]
    bare = tokenizer(list(_PROBES), add_special_tokens=False)["input_ids"]
    count = len(wanted[0]) - len(bare[0])
    start = "".join(tokenizer.convert_ids_to_tokens(wanted[0][:count]))
    # Some tokenizers put a space before the first word of a text, and after a token there is none.
    for prefix in (start, f"{start} "):
        if tokenizer([prefix + text for text in _PROBES], add_special_tokens=False)["input_ids"] == wanted:
            return prefix
    return start


def _quoted(text: str) -> str:
    """As a literal of Jinja."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
