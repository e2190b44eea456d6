"""How is one example written as bytes: `tf.train.Example` encoded and decoded without TensorFlow.

The message types are declared here (tensorflow/core/example/{example,feature}.proto) in a descriptor pool of their own,
so that a process which has TensorFlow loaded as well does not meet two definitions of the same name.
"""

import numbers
from collections.abc import Mapping, Sequence

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from input_pipeline.cli import UserError

Feature = bytes | int | float | Sequence[bytes] | Sequence[int] | Sequence[float]

_FIELD = descriptor_pb2.FieldDescriptorProto
_INT64_RANGE = (-(2**63), 2**63 - 1)


def _add_field(parent, name: str, number: int, kind: int, *, repeated: bool = False, type_name: str = "") -> _FIELD:
    field = parent.field.add(name=name, number=number, type=kind)
    field.label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
    if type_name:
        field.type_name = f".tensorflow.{type_name}"
    return field


def _example_class() -> type[message.Message]:
    file = descriptor_pb2.FileDescriptorProto(name="input_pipeline/example.proto", package="tensorflow")
    file.syntax = "proto3"
    for name, kind in (
        ("BytesList", _FIELD.TYPE_BYTES),
        ("FloatList", _FIELD.TYPE_FLOAT),
        ("Int64List", _FIELD.TYPE_INT64),
    ):
        _add_field(file.message_type.add(name=name), "value", 1, kind, repeated=True)

    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, type_name) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), 1
    ):
        _add_field(feature, name, number, _FIELD.TYPE_MESSAGE, type_name=type_name).oneof_index = 0

    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    _add_field(entry, "key", 1, _FIELD.TYPE_STRING)
    _add_field(entry, "value", 2, _FIELD.TYPE_MESSAGE, type_name="Feature")
    _add_field(features, "feature", 1, _FIELD.TYPE_MESSAGE, repeated=True, type_name="Features.FeatureEntry")

    _add_field(file.message_type.add(name="Example"), "features", 1, _FIELD.TYPE_MESSAGE, type_name="Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


Example = _example_class()


def encode_example(features: Mapping[str, Feature]) -> bytes:
    """Serialises `features` as a `tf.train.Example`; equal features give equal bytes, whatever their order.

    Args:
        features: name -> bytes, integer or float, or a list of one of these. An empty list is stored as an empty
            integer list (the labels of an unlabelled image).

    Raises:
        TypeError: for a value, or a list with values, of another kind (text must be encoded by the caller).
        ValueError: for an integer outside 64 bits.
    """
    example = Example()
    for name in sorted(features):
        value = features[name]
        values = [value] if isinstance(value, bytes | bytearray | numbers.Real) else list(value)
        feature = example.features.feature[name]
        if values and all(isinstance(item, bytes | bytearray) for item in values):
            feature.bytes_list.value.extend(bytes(item) for item in values)
        elif all(isinstance(item, numbers.Integral) for item in values):
            integers = [int(item) for item in values]
            if any(not _INT64_RANGE[0] <= item <= _INT64_RANGE[1] for item in integers):
                raise ValueError(f"feature {name!r} holds an integer that does not fit 64 bits")
            feature.int64_list.SetInParent()
            feature.int64_list.value.extend(integers)
        elif all(isinstance(item, numbers.Real) for item in values):
            feature.float_list.value.extend(float(item) for item in values)
        else:
            kinds = sorted({type(item).__name__ for item in values})
            raise TypeError(f"feature {name!r} must hold only bytes, only integers or only floats, not {kinds}")
    return example.SerializeToString(deterministic=True)


def parse_example(data: bytes) -> message.Message:
    """Parses a serialised `tf.train.Example` into its message (`.features.feature[name]`).

    Raises:
        UserError: when the bytes are not an Example.
    """
    try:
        return Example.FromString(data)
    except message.DecodeError as error:
        raise UserError(
            "a record is intact but holds no tf.train.Example: point at a folder written by "
            "`python -m input_pipeline.prepare`."
        ) from error


def decode_example(data: bytes) -> dict[str, list[bytes] | list[int] | list[float]]:
    """The features of a serialised `tf.train.Example`: name -> list of bytes, integers or floats, sorted by name.

    Raises:
        UserError: when the bytes are not an Example.
    """
    features = parse_example(data).features.feature
    decoded = {}
    for name in sorted(features):
        kind = features[name].WhichOneof("kind")
        decoded[name] = list(getattr(features[name], kind).value) if kind else []
    return decoded
