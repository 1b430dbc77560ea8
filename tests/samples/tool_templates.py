"""Chat templates with turns of tools, in the manner of the well-known ones."""

_HERMES = (
    "{% if tools %}{{ '<|im_start|>system\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "{{ '# Tools\n<tools>' }}{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}"
    "{{ '\n</tools><|im_end|>\n' }}{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' or (message.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% elif message.role == 'assistant' %}{{ '<|im_start|>assistant\n' + message.content }}"
    "{% for call in message.tool_calls or [] %}"
    "{% if not loop.first or message.content %}{{ '\n' }}{% endif %}"
    """{{ '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}"""
    "{{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% elif message.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}"
    "{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_LLAMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content | trim %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' + system + '<|eot_id|>' }}"
    "{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '<|start_header_id|>user<|end_header_id|>\n\n' }}"
    "{% if loop.first and tools %}{{ 'Answer with a call of one of these functions.\n\n' }}"
    "{% for tool in tools %}{{ tool | tojson(indent=4) }}{{ '\n\n' }}{% endfor %}{% endif %}"
    "{{ message.content | trim + '<|eot_id|>' }}{% elif message.role == 'tool' %}"
    "{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}"
    "{% if message.content is iterable %}{{ message.content | tojson }}"
    "{% else %}{{ message.content }}{% endif %}{{ '<|eot_id|>' }}{% else %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% if message.tool_calls %}"
    "{% if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}"
    "{% endif %}{% set call = message.tool_calls[0].function %}"
    """{{ '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ '}' }}"""
    "{% else %}{{ message.content | trim }}{% endif %}{{ '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)

_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "{% if tools and loop.last or (tools and messages[-1].role != 'user') %}"
    "{{ '[AVAILABLE_TOOLS] ' }}{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST] ' + message.content + '[/INST]' }}{% elif message.role == 'tool' %}"
    """{{ '[TOOL_RESULTS] {"content": ' }}{{ message.content | tojson }}"""
    "{% if message.tool_call_id | length != 9 %}{{ raise_exception('nine') }}{% endif %}"
    """{{ ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}"""
    "{% elif message.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for call in message.tool_calls %}"
    """{{ '{"name": "' + call.function.name + '", "arguments": ' }}"""
    "{{ call.function.arguments | tojson }}{{ ', \"id\": \"' + call.id + '\"}' }}"
    "{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']' + eos_token }}"
    "{% elif message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)

_DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}"
    "{% if tools %}{{ '\n' + tools | tojson }}{% endif %}"
    "{% elif message.role == 'user' %}{{ '<|User|>' + message.content }}"
    "{% elif message.role == 'tool' %}{{ '<|result|>' + message.content + '<|end_result|>' }}"
    "{% else %}{% if messages[loop.index0 - 1].role != 'tool' %}{{ '<|Assistant|>' }}{% endif %}"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}"
    "{{ '<|call|>' + call.function.name + '<|sep|>' + call.function.arguments + '<|end_call|>' }}"
    "{% endfor %}{% else %}{{ message.content }}{% endif %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'tool' %}{{ '<|Assistant|>' }}{% endif %}"
)

TOOL_TEMPLATES = {
    "hermes": _HERMES,
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "deepseek": "{% if tools and messages[0].role != 'system' %}"
    "{% set messages = [{'role': 'system', 'content': ''}] + messages %}{% endif %}" + _DEEPSEEK,
}

_MARKERS = {
    "hermes": "<|im_start|> <tool_call> </tool_call> <tool_response> </tool_response> <|im_end|>",
    "llama": "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>",
    "mistral": "<s> [INST] [/INST] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] [AVAILABLE_TOOLS] "
    "[/AVAILABLE_TOOLS] </s>",
    "deepseek": "<s> <|User|> <|Assistant|> <|result|> <|end_result|> <|call|> <|sep|> "
    "<|end_call|> </s>",
}
TOOL_MARKERS = {name: tuple(markers.split()) for name, markers in _MARKERS.items()}
"""The added tokens of each: the first may open a context, the last ends a turn."""
