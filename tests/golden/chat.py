"""Writes chat.json: chat templates, conversations, and what transformers renders for them.

The templates are written for this test. Each is built like a published family (ChatML/Qwen3, Llama 3, Mistral, Gemma, DeepSeek, Phi)
and uses the same features of Jinja. Run with transformers installed: python tests/golden/chat.py
"""
import datetime, json, pathlib

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent

QWEN = r"""
{%- if tools %}
    {{- '<|im_start|>system\nTools:\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(seeking=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.seeking and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.seeking = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and thought)) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}{{- message.tool_calls | length }}{%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA = r"""{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "unknown" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- the system message may be absent #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

MISTRAL = r"""{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- for message in turns %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate: user, assistant, user, ...") }}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in turns %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- else %}
        {{- raise_exception("only user and assistant turns after the system message") }}
    {%- endif %}
{%- endfor %}
"""

# trim_blocks and lstrip_blocks matter here: nothing is trimmed by hand
BLOCKS = """{% for message in messages %}
    {% if message.role == 'user' %}
User: {{ message.content }}
    {% else %}
{{ message.role | title }}: {{ message.content | upper }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
Assistant:
{% endif %}

"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{% set ns = namespace(is_first=false, system_prompt='') %}\
{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}\
{{bos_token}}{{ns.system_prompt}}\
{%- for message in messages %}\
{%- if message['role'] == 'user' %}{%- set ns.is_first = true -%}{{'<｜User｜>' + message['content']}}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}\
{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}\
{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}\
{%- endfor -%}{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% endif %}"""

LOOPS = """{%- macro turn(message) -%}
<|{{ message.role }}|>
{%- if message.content is mapping %}{{ message.content | tojson(indent=2) }}{% else %}{{ message.content }}{% endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message.role == 'skip' %}{% continue %}{% endif -%}
{%- if message.role == 'stop' %}{% break %}{% endif -%}
{{ turn(message) }}{{ '\\n' if not loop.last else '' }}
{%- endfor -%}
{{ {'b': [1, 2.5, None, True], 'a': 'é<&>\\'"'} | tojson }}{{ {'b': 1, 'a': []} | tojson(sort_keys=true, separators=(',', ':')) }}
{{- [1, {'x': {}}] | tojson(indent=4) -}}
"""

GENERATION = """{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
{%- else %}{{ message.role ~ ': ' ~ message.content }}
{% endif %}{% endfor %}{% if not enable_thinking %}(no thoughts){% endif %}"""

UNDEFINED = "{{ bos_token }}|{{ pad_token }}|{{ nothing }}|{{ messages[0].nothing }}|{% for x in nothing %}{% endfor %}{{ tools is none }}{{ documents is none }}"

METHODS = """{% for m in messages %}{{ m.content.strip().lower().replace('a', 'b').title() }}|{{ m.content.splitlines() | length }}|\
{{ m.content.split() | join('+') }}|{{ m.content.split('a', 1) | last }}|{{ m.content[:3] }}|{{ m.content[-2:] }}|{{ m.get('role') }}|{{ m.get('x', 'd') }}|\
{% for k, v in m.items() %}{{ k }}={{ v | length }};{% endfor %}{{ m.keys() | list | join(',') }}|{{ m.content.find('b') }}|{{ m.content | first }}|{{ loop.index }}/{{ loop.length }}\
|{{ m.content.count('a') }}|{{ 'x'.join(['1', '2']) }}|{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ messages | map(attribute='role') | join(' ') }}\
{% endfor %}"""

USER = [{"role": "user", "content": "Rewrite: {TEXT}"}]
SYSTEM = [{"role": "system", "content": " Be kind. "}, {"role": "user", "content": "  Hello\nthere <b>&amp; 'you'\n"}]
LONG = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "One"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTwo"},
    {"role": "user", "content": "日本 <|im_end|> abc"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def case(name, template, messages, thinking=None, tokens=TOKENS):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>")), **tokens)
    options = {} if thinking is None else {"enable_thinking": thinking}
    entry = {"name": name, "template": template, "tokens": tokens, "messages": messages, "thinking": thinking}
    try:
        entry["expected"] = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True, **options
        )
    except Exception as error:
        entry["error"] = str(error)
    return entry


class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 3, 9)


chat_template_utils.datetime = Fixed
cases = []
for name, template in [("qwen", QWEN), ("llama", LLAMA), ("mistral", MISTRAL), ("blocks", BLOCKS), ("gemma", GEMMA), ("deepseek", DEEPSEEK),
                       ("loops", LOOPS), ("generation", GENERATION)]:
    for which, messages in [("user", USER), ("system", SYSTEM), ("long", LONG)]:
        for thinking in [False, True]:
            cases.append(case(f"{name}/{which}/{thinking}", template, messages, thinking))
cases.append(case("loops/skip", LOOPS, USER + [{"role": "skip", "content": "x"}, {"role": "stop", "content": "y"}] + USER, False))
cases.append(case("mistral/order", MISTRAL, [USER[0], USER[0]], False))
cases.append(case("undefined", UNDEFINED, USER, False, {"bos_token": "<s>"}))
cases.append(case("methods", METHODS, SYSTEM + [{"role": "user", "content": "abc abd\nb a"}], False))
assert sum("error" in c for c in cases) == 5, [c["name"] for c in cases if "error" in c]
(HERE / "chat.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")
