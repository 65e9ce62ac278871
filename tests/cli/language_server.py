"""The least of a client of the language server protocol, for the test of editor support."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from pathlib import Path
from typing import Any


class LanguageServer:
    """yaml-language-server over stdio: open a text, get its diagnostics, ask for completions."""

    def __init__(self, command: str, schema: Path, folder: Path) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([command, "--stdio"], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        self.settings = {
            "validate": True, "completion": True, "hover": True, "schemaStore": {"enable": False},
            "schemas": {schema.as_uri(): "*.yaml"},
        }  # fmt: skip
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.folder = folder
        self.asked = 0
        threading.Thread(target=self._listen, daemon=True).start()
        self.ask("initialize", {"processId": None, "rootUri": folder.as_uri(), "capabilities": {
            "workspace": {"configuration": True}, "textDocument": {"completion": {"completionItem": {}}}}})  # fmt: skip
        self.tell("initialized", {})
        self.tell("workspace/didChangeConfiguration", {"settings": {"yaml": self.settings}})
        wrong = self._open("settled.yaml", "[]\n")
        while not self._published(wrong):  # nothing is wrong, and nothing is offered, until the settings are read
            pass

    def diagnostics(self, name: str, text: str) -> list[dict[str, Any]]:
        """Open a document and wait for what is wrong with it."""
        return self._published(self._open(name, text))

    def completions(self, name: str, text: str) -> list[str]:
        """What is offered at the end of a text."""
        uri = self._open(name, text)
        lines = text.split("\n")
        position = {"line": len(lines) - 1, "character": len(lines[-1])}
        found = self.ask("textDocument/completion", {"textDocument": {"uri": uri}, "position": position})
        return [item["label"] for item in (found["items"] if isinstance(found, dict) else found or [])]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, method: str, params: Any) -> Any:
        self.asked += 1
        mine = self.asked
        self._send({"id": mine, "method": method, "params": params})
        while True:
            message = self.answers.get(timeout=30)
            if message.get("id") == mine and "method" not in message:
                assert "error" not in message, message
                return message["result"]

    def tell(self, method: str, params: Any) -> None:
        self._send({"method": method, "params": params})

    def _published(self, uri: str) -> list[dict[str, Any]]:
        """The next diagnostics of an open document."""
        while True:
            message = self.answers.get(timeout=30)
            if message.get("method") == "textDocument/publishDiagnostics" and message["params"]["uri"] == uri:
                return list(message["params"]["diagnostics"])

    def _open(self, name: str, text: str) -> str:
        uri = (self.folder / name).as_uri()
        self.tell(
            "textDocument/didOpen", {"textDocument": {"uri": uri, "languageId": "yaml", "version": 1, "text": text}}
        )
        return uri

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.process.stdin.flush()

    def _listen(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        while header := stream.readline():
            length = 0
            while header.strip():
                name, _, value = header.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
                header = stream.readline()
            message = json.loads(stream.read(length))
            if message.get("method") == "workspace/configuration":
                known = {"yaml": self.settings}
                result = [known.get(item.get("section"), {}) for item in message["params"]["items"]]
                self._send({"id": message["id"], "result": result})
            elif "id" in message and "method" in message:
                self._send({"id": message["id"], "result": None})
            else:
                self.answers.put(message)
