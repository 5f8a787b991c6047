"""A real S3 server on this machine (moto's), which counts what is asked of it."""

import threading
from collections import Counter
from pathlib import Path

REFUSED = """<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code>\
<Message>This is not for you.</Message></Error>"""


class ObjectStore:
    """An S3 server, with a bucket `photos`. Requests below /closed are refused.

    `asked` counts (method, "/bucket/key"); `gone` are keys whose next GET finds nothing; `refused`
    maps a path to the code with which it is refused.
    """

    def __init__(self):
        import boto3
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_):
                pass

        self.asked, self.gone = Counter(), set()
        self.refused = {"/closed": "InvalidAccessKeyId"}
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._counted, threaded=True, request_handler=Quiet
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="somebody",
            aws_secret_access_key="secret",
        )
        self._client.create_bucket(Bucket="photos")

    def _counted(self, environ, start_response):
        method = environ["REQUEST_METHOD"]
        path = environ["PATH_INFO"].encode("latin-1").decode()
        self.asked[method, path] += 1
        if code := next((self.refused[p] for p in self.refused if path.startswith(p)), None):
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [REFUSED.format(code).encode()]
        if method == "GET" and path in self.gone:
            self.gone.discard(path)
            self.delete(path.removeprefix("/photos/"))
        return self._application(environ, start_response)

    def stop(self):
        self._server.shutdown()

    def put(self, key, content):
        """Stores bytes in the bucket."""
        self._client.put_object(Bucket="photos", Key=key, Body=content)

    def delete(self, key):
        """Removes an object from the bucket."""
        self._client.delete_object(Bucket="photos", Key=key)

    def upload(self, folder, prefix):
        """Stores a folder's files below a prefix; returns the URL."""
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"s3://photos/{prefix}"

    def fetched(self, prefix):
        """{key: how often it was asked for} below a prefix, listings apart."""
        start = f"/photos/{prefix}/"
        gets = {path: count for (method, path), count in self.asked.items() if method == "GET"}
        return {path: count for path, count in gets.items() if path.startswith(start)}
