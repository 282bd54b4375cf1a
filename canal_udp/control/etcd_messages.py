"""etcd's v3 protocol as far as we speak it: messages by name and number, and the calls that take and return them.

Structure   one line of _MESSAGES per message: its fields with their numbers; `*` marks a list. protobuf makes the
            classes from that at import, so no generated file ties us to one version of protobuf.
Limits      fields that we neither set nor read are left out; protobuf skips them on reading.
Source      etcd api/etcdserverpb/rpc.proto, api/mvccpb/kv.proto; the numbers are the same in 3.4, 3.5 and 3.6
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_MESSAGES = """
ResponseHeader           uint64 cluster_id 1, int64 revision 3
KeyValue                 bytes key 1, int64 create_revision 2, int64 mod_revision 3, bytes value 5, int64 lease 6
Event                    int32 type 1, KeyValue kv 2, KeyValue prev_kv 3
RangeRequest             bytes key 1, bytes range_end 2, int64 limit 3, int64 revision 4, bool serializable 7, bool keys_only 8
RangeResponse            ResponseHeader header 1, KeyValue* kvs 2, bool more 3
PutRequest               bytes key 1, bytes value 2, int64 lease 3, bool prev_kv 4
PutResponse              ResponseHeader header 1, KeyValue prev_kv 2
DeleteRangeRequest       bytes key 1, bytes range_end 2, bool prev_kv 3
DeleteRangeResponse      ResponseHeader header 1, int64 deleted 2, KeyValue* prev_kvs 3
Compare                  int32 result 1, int32 target 2, bytes key 3, int64 mod_revision 6
RequestOp                RangeRequest request_range 1, PutRequest request_put 2, DeleteRangeRequest request_delete_range 3
ResponseOp               RangeResponse response_range 1, PutResponse response_put 2, DeleteRangeResponse response_delete_range 3
TxnRequest               Compare* compare 1, RequestOp* success 2, RequestOp* failure 3
TxnResponse              ResponseHeader header 1, bool succeeded 2, ResponseOp* responses 3
WatchCreateRequest       bytes key 1, bytes range_end 2, int64 start_revision 3, bool progress_notify 4, bool prev_kv 6
WatchRequest             WatchCreateRequest create_request 1
WatchResponse            ResponseHeader header 1, bool created 3, bool canceled 4, int64 compact_revision 5, string cancel_reason 6, Event* events 11
LeaseGrantRequest        int64 TTL 1, int64 ID 2
LeaseGrantResponse       ResponseHeader header 1, int64 ID 2, int64 TTL 3
LeaseRevokeRequest       int64 ID 1
LeaseRevokeResponse      ResponseHeader header 1
LeaseTimeToLiveRequest   int64 ID 1
LeaseTimeToLiveResponse  ResponseHeader header 1, int64 ID 2, int64 TTL 3
AuthenticateRequest      string name 1, string password 2
AuthenticateResponse     ResponseHeader header 1, string token 2
"""  # noqa: E501 - a line is a message

EQUAL, MOD = 0, 2  # Compare.result, Compare.target
DELETE = 1  # Event.type

_PACKAGE = "canal.etcd"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "uint64": _Field.TYPE_UINT64,
}


@dataclass(frozen=True, slots=True)
class Method:
    """One call of etcd's."""

    path: str
    request: Any  # classes; protobuf's have no types to check
    reply: Any


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="canal/etcd.proto", package=_PACKAGE, syntax="proto3")
    for line in _MESSAGES.strip().splitlines():
        name, _, fields = line.partition(" ")
        message = file.message_type.add(name=name)
        for text in fields.split(","):
            kind, label, number = text.split()
            field = message.field.add(name=label, number=int(number))
            field.label = _Field.LABEL_REPEATED if kind.endswith("*") else _Field.LABEL_OPTIONAL
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind.rstrip('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = (message.name for message in file.message_type)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in made}


MESSAGES = _classes()


def _method(service: str, name: str, message: str = "") -> Method:
    message = message or name
    path = f"/etcdserverpb.{service}/{name}"
    return Method(path, MESSAGES[f"{message}Request"], MESSAGES[f"{message}Response"])


RANGE = _method("KV", "Range")
TXN = _method("KV", "Txn")
WATCH = _method("Watch", "Watch")
GRANT = _method("Lease", "LeaseGrant")
REVOKE = _method("Lease", "LeaseRevoke")
TIME_TO_LIVE = _method("Lease", "LeaseTimeToLive")
AUTHENTICATE = _method("Auth", "Authenticate")

Compare = MESSAGES["Compare"]
DeleteRangeRequest = MESSAGES["DeleteRangeRequest"]
PutRequest = MESSAGES["PutRequest"]
RequestOp = MESSAGES["RequestOp"]
WatchCreateRequest = MESSAGES["WatchCreateRequest"]
