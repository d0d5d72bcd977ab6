# SPDX-License-Identifier: Apache-2.0
"""A collector of OpenTelemetry that takes nothing but what the schema knows: collector.py HOST:PORT FILE

Appends a line of JSON to FILE for each metric and each log record."""
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

address, path = sys.argv[1:3]


def note(kind, text):
    with open(path, "a") as out:
        out.write(json.dumps({"kind": kind, "text": text}) + "\n")


def service(resource):
    return next(a.value.string_value for a in resource.attributes if a.key == "service.name")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            if self.path == "/v1/metrics":
                message = Parse(body, ExportMetricsServiceRequest())
                for resource in message.resource_metrics:
                    for scope in resource.scope_metrics:
                        for metric in scope.metrics:
                            points = metric.sum.data_points or metric.gauge.data_points
                            assert points and all(p.time_unix_nano for p in points), metric
                            note("metric", metric.name)
            elif self.path == "/v1/logs":
                message = Parse(body, ExportLogsServiceRequest())
                for resource in message.resource_logs:
                    for scope in resource.scope_logs:
                        for record in scope.log_records:
                            note("log " + service(resource.resource), record.body.string_value)
            else:
                raise ValueError(self.path)
        except Exception as error:
            note("error", repr(error))
            self.send_response(400)
        else:
            self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


host, port = address.rsplit(":", 1)
ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
