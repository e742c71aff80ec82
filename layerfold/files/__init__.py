"""Files in and out: bounded, typed reading; writing that leaves the old file or the whole new one."""

from layerfold.files._json import Count, Finite, JsonObject, JsonValue, as_json, parse_json, read_json
from layerfold.files._lock import held
from layerfold.files._reading import check_regular, file_sha256, read_bytes, read_text
from layerfold.files._sheets import FORMULA_SIGNS, csv_text
from layerfold.files._writing import (
    json_text,
    replacing,
    replacing_all,
    sidecar_path,
    write_bytes,
    write_json,
    write_text,
)

__all__ = [
    "FORMULA_SIGNS",
    "Count",
    "Finite",
    "JsonObject",
    "JsonValue",
    "as_json",
    "check_regular",
    "csv_text",
    "file_sha256",
    "held",
    "json_text",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_text",
    "replacing",
    "replacing_all",
    "sidecar_path",
    "write_bytes",
    "write_json",
    "write_text",
]
