"""A stand-in for the hub: it answers huggingface_hub's own client on this machine, and keeps what it is sent."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest


class Hub:
    """Repositories by name: whether private, and their files; `refuse` maps an address to (status, code, message)."""

    def __init__(self):
        self.repositories, self.refuse, self.asked, self.address = {}, {}, [], ""

    def answer(self, method, path, body):
        if path == "/api/whoami-v2":
            return {"name": "me", "type": "user"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            known = name in self.repositories
            self.repositories.setdefault(name, {"private": wanted.get("visibility") == "private", "files": {}})
            return {"url": f"{self.address}/{name}"} if not known else (409, {"url": f"{self.address}/{name}"})
        name = "/".join(path.split("/")[3:5])
        if name not in self.repositories:
            return 404, {}
        repository = self.repositories[name]
        if path.endswith("/preupload/main"):
            asked = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": each, "uploadMode": "regular", "shouldIgnore": False} for each in asked]}
        if path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            repository["message"] = lines[0]["value"]["summary"]
            for line in lines[1:]:
                repository["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {
                "success": True,
                "commitOid": "0" * 40,
                "commitUrl": f"{self.address}/{name}/commit/0",
                "hookOutput": "",
            }
        return {"id": name, "private": repository["private"], "sha": "0" * 40, "siblings": []}


@pytest.fixture
def hub(monkeypatch):
    stand_in = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path, body = self.path.partition("?")[0], self.rfile.read(int(self.headers.get("Content-Length") or 0))
            stand_in.asked.append((self.command, path, self.headers.get("Authorization")))
            status, headers, told = 200, {}, {}
            if path in stand_in.refuse:
                status, code, message = stand_in.refuse[path]
                headers = {"X-Error-Code": code, "X-Error-Message": message}
            else:
                told = stand_in.answer(self.command, path, body)
                status, told = told if isinstance(told, tuple) else (200, told)
            text = json.dumps(told).encode()
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", "Content-Length": str(len(text)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, *words):
            pass

    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        stand_in.address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", stand_in.address)
        yield stand_in
        server.shutdown()
