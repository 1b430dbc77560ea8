"""Servers of tools that tests start: one by the package mcp, and one that does what it is told."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["OBJECT", "gateway", "served_over_http", "told_server", "tools_server"]

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}

_TOOLS = '''
from mcp.server.mcpserver import MCPServer

server = MCPServer("tools", log_level="ERROR")


@server.tool()
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool()
def parts(word: str) -> dict[str, int]:
    """Say how often each letter stands in a word."""
    return {letter: word.count(letter) for letter in word}


@server.tool()
def fail() -> str:
    """Fail."""
    raise ValueError("no way")
'''

_TOLD = """
import json, os, sys
told = json.loads(sys.argv[1])
if "pid" in told:
    open(told["pid"], "w").write(str(os.getpid()))
    open(told["pid"] + ".all", "a").write(f"{os.getpid()} ")
if "ends" in told:
    sys.exit(told["ends"])
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    method, answer = asked["method"], {"jsonrpc": "2.0", "id": asked["id"]}
    if method == "initialize":
        version = asked["params"]["protocolVersion"]
        info = {"name": "told", "version": "1"}
        answer["result"] = {
            "protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info
        }
    elif method == "tools/list":
        answer["result"] = {"tools": told.get("tools", [])}
        if told.get("endless"):
            answer["result"]["nextCursor"] = str(asked["id"])
    elif method == "tools/call":
        if told.get("call") == "dies":
            sys.exit("it is too much")
        if told.get("call") == "hangs":
            open(told["pid"] + ".called", "w").close()
            continue
        result = told.get("result", [{"type": "text", "text": os.environ.get("WORD", "done")}])
        if isinstance(result, int):
            result = [{"type": "text", "text": "x" * result}]
        answer["result"] = {"content": result}
        if "data" in told:
            answer["result"]["structuredContent"] = told["data"]
    else:
        answer["error"] = {"code": -32601, "message": "no such method"}
    print(json.dumps(answer), flush=True)
"""


def tools_server(folder: Path) -> list[str]:
    """The command of a server by the package mcp, whose file is written into a folder."""
    file = folder / "tools_server.py"
    file.write_text(_TOOLS + '\n\nserver.run("stdio")\n')
    return [sys.executable, str(file)]


def told_server(**told: Any) -> list[str]:
    """The command of a server that needs no package, and so starts at once.

    Args:
        told: ``tools`` it lists, ``result`` of a call (blocks, or a number of letters) and its
            ``data``, ``call`` that ``dies`` or ``hangs``, a file for its ``pid``, ``endless``
            pages, or words that it ``ends`` with before it answers.
    """
    return [sys.executable, "-I", "-S", "-c", _TOLD, json.dumps(told)]


@contextmanager
def gateway(status: int) -> Iterator[str]:
    """The address of a server whose every call ends with an HTTP status, or 0 without an answer."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if "id" not in asked:
                self._send(202, b"")
                return
            info = {"name": "told", "version": "1"}
            results = {
                "initialize": {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {"tools": {}},
                    "serverInfo": info,
                },
                "tools/list": {"tools": [{"name": "one", "inputSchema": OBJECT}]},
            }
            answer = {"jsonrpc": "2.0", "id": asked["id"]}
            if asked["method"] != "tools/call":
                known = asked["method"] in results
                wrong = {"error": {"code": -32601, "message": "no such method"}}
                found = {"result": results[asked["method"]]} if known else wrong
                self._send(200, json.dumps({**answer, **found}).encode())
            elif status:
                self._send(status, b"")
            self.close_connection = True

        def _send(self, code: int, content: bytes) -> None:
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/mcp"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def served_over_http() -> Iterator[str]:
    """The address of a server by the package mcp, on a thread of this process."""
    import uvicorn

    space: dict[str, Any] = {}
    exec(_TOOLS, space)
    app = space["server"].streamable_http_app()
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        server.should_exit = True
        thread.join()
