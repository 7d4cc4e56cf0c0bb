"""The protobuf messages of Sparkplug B 3.0 (§6.4.1), as far as metering needs them. Pure.

Built at run time from their field numbers, so no generated code has to be kept. Fields that are not
listed (metadata, properties, data sets, templates) are skipped by the library as unknown.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_Field = descriptor_pb2.FieldDescriptorProto
_UINT32, _UINT64 = _Field.TYPE_UINT32, _Field.TYPE_UINT64
_METRIC_FIELDS = (
    ("name", 1, _Field.TYPE_STRING),
    ("alias", 2, _UINT64),
    ("timestamp", 3, _UINT64),
    ("datatype", 4, _UINT32),
    ("is_historical", 5, _Field.TYPE_BOOL),
    ("is_null", 7, _Field.TYPE_BOOL),
)
_VALUE_FIELDS = (
    ("int_value", 10, _UINT32),
    ("long_value", 11, _UINT64),
    ("float_value", 12, _Field.TYPE_FLOAT),
    ("double_value", 13, _Field.TYPE_DOUBLE),
    ("boolean_value", 14, _Field.TYPE_BOOL),
    ("string_value", 15, _Field.TYPE_STRING),
)


def _payload_class() -> type[Message]:
    file = descriptor_pb2.FileDescriptorProto(
        name="metering/sparkplug_b.proto", package="metering.sparkplug", syntax="proto2"
    )
    payload = file.message_type.add(name="Payload")
    metric = payload.nested_type.add(name="Metric")
    for name, number, kind in _METRIC_FIELDS:
        metric.field.add(name=name, number=number, type=kind, label=_Field.LABEL_OPTIONAL)
    metric.oneof_decl.add(name="value")
    for name, number, kind in _VALUE_FIELDS:
        metric.field.add(
            name=name, number=number, type=kind, label=_Field.LABEL_OPTIONAL, oneof_index=0
        )
    payload.field.add(name="timestamp", number=1, type=_UINT64, label=_Field.LABEL_OPTIONAL)
    payload.field.add(
        name="metrics",
        number=2,
        type=_Field.TYPE_MESSAGE,
        type_name=".metering.sparkplug.Payload.Metric",
        label=_Field.LABEL_REPEATED,
    )
    payload.field.add(name="seq", number=3, type=_UINT64, label=_Field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName("metering.sparkplug.Payload")
    return message_factory.GetMessageClass(descriptor)


PAYLOAD = _payload_class()
