# SPDX-License-Identifier: Apache-2.0
"""Reads figures as Prometheus' own client library does: scrape.py URL. Prints family, labels but the device, value."""
import sys
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

text = urllib.request.urlopen(sys.argv[1]).read().decode()
for family in text_string_to_metric_families(text):
    assert family.documentation, family.name
    for sample in family.samples:
        labels = " ".join(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "device")
        print(" ".join(part for part in (sample.name, labels, str(sample.value)) if part))
