// Compiles only if csrc/xla/ffi.h says what XLA's own header says: sizes, places of fields, numbers.
#include "xla/ffi.h"

#include <cstddef>

#include "xla/ffi/api/c_api.h"

namespace ours = ringdp::xla;

#define SAME_SIZE(mine, theirs) static_assert(sizeof(ours::mine) == sizeof(theirs), #mine)
#define SAME_PLACE(mine, field, theirs, their_field)                                              \
  static_assert(offsetof(ours::mine, field) == offsetof(theirs, their_field), #mine "::" #field); \
  static_assert(sizeof(ours::mine::field) == sizeof(theirs::their_field), #mine "::" #field)
#define SAME_NUMBER(mine, theirs) static_assert(static_cast<int>(ours::mine) == static_cast<int>(theirs), #mine)

SAME_SIZE(Extension, XLA_FFI_Extension_Base);
SAME_PLACE(Extension, struct_size, XLA_FFI_Extension_Base, struct_size);
SAME_PLACE(Extension, type, XLA_FFI_Extension_Base, type);
SAME_PLACE(Extension, next, XLA_FFI_Extension_Base, next);

SAME_SIZE(Version, XLA_FFI_Api_Version);
SAME_PLACE(Version, major, XLA_FFI_Api_Version, major_version);
SAME_PLACE(Version, minor, XLA_FFI_Api_Version, minor_version);

// It grows at its end.
SAME_PLACE(Metadata, struct_size, XLA_FFI_Metadata, struct_size);
SAME_PLACE(Metadata, version, XLA_FFI_Metadata, api_version);
SAME_PLACE(Metadata, traits, XLA_FFI_Metadata, traits);

SAME_SIZE(MetadataExtension, XLA_FFI_Metadata_Extension);
SAME_PLACE(MetadataExtension, base, XLA_FFI_Metadata_Extension, extension_base);
SAME_PLACE(MetadataExtension, metadata, XLA_FFI_Metadata_Extension, metadata);

static_assert(sizeof(ours::MakeError) == sizeof(XLA_FFI_Error_Create_Args));
SAME_PLACE(MakeError, message, XLA_FFI_Error_Create_Args, message);
SAME_PLACE(MakeError, code, XLA_FFI_Error_Create_Args, errc);

SAME_PLACE(Functions, version, XLA_FFI_Api, api_version);
SAME_PLACE(Functions, make_error, XLA_FFI_Api, XLA_FFI_Error_Create);

SAME_SIZE(Buffer, XLA_FFI_Buffer);
SAME_PLACE(Buffer, dtype, XLA_FFI_Buffer, dtype);
SAME_PLACE(Buffer, data, XLA_FFI_Buffer, data);
SAME_PLACE(Buffer, dimensions, XLA_FFI_Buffer, rank);
SAME_PLACE(Buffer, shape, XLA_FFI_Buffer, dims);

SAME_SIZE(Bytes, XLA_FFI_ByteSpan);
SAME_PLACE(Bytes, data, XLA_FFI_ByteSpan, ptr);
SAME_PLACE(Bytes, size, XLA_FFI_ByteSpan, len);
SAME_SIZE(Scalar, XLA_FFI_Scalar);
SAME_PLACE(Scalar, dtype, XLA_FFI_Scalar, dtype);
SAME_PLACE(Scalar, value, XLA_FFI_Scalar, value);
SAME_SIZE(Array, XLA_FFI_Array);
SAME_PLACE(Array, dtype, XLA_FFI_Array, dtype);
SAME_PLACE(Array, size, XLA_FFI_Array, size);
SAME_PLACE(Array, data, XLA_FFI_Array, data);

SAME_SIZE(Buffers, XLA_FFI_Args);
SAME_PLACE(Buffers, size, XLA_FFI_Args, size);
SAME_PLACE(Buffers, types, XLA_FFI_Args, types);
SAME_PLACE(Buffers, buffers, XLA_FFI_Args, args);
SAME_SIZE(Buffers, XLA_FFI_Rets);
SAME_PLACE(Buffers, size, XLA_FFI_Rets, size);
SAME_PLACE(Buffers, types, XLA_FFI_Rets, types);
SAME_PLACE(Buffers, buffers, XLA_FFI_Rets, rets);

SAME_SIZE(Attributes, XLA_FFI_Attrs);
SAME_PLACE(Attributes, size, XLA_FFI_Attrs, size);
SAME_PLACE(Attributes, types, XLA_FFI_Attrs, types);
SAME_PLACE(Attributes, names, XLA_FFI_Attrs, names);
SAME_PLACE(Attributes, values, XLA_FFI_Attrs, attrs);

SAME_PLACE(Frame, struct_size, XLA_FFI_CallFrame, struct_size);
SAME_PLACE(Frame, extensions, XLA_FFI_CallFrame, extension_start);
SAME_PLACE(Frame, functions, XLA_FFI_CallFrame, api);
SAME_PLACE(Frame, context, XLA_FFI_CallFrame, ctx);
SAME_PLACE(Frame, stage, XLA_FFI_CallFrame, stage);
SAME_PLACE(Frame, arguments, XLA_FFI_CallFrame, args);
SAME_PLACE(Frame, results, XLA_FFI_CallFrame, rets);
SAME_PLACE(Frame, attributes, XLA_FFI_CallFrame, attrs);

SAME_NUMBER(kMetadata, XLA_FFI_Extension_Metadata);
SAME_NUMBER(kMajor, XLA_FFI_API_MAJOR);
static_assert(ours::kMinor <= XLA_FFI_API_MINOR, "this jaxlib is older than what ringdp calls");
SAME_NUMBER(kInvalidArgument, XLA_FFI_Error_Code_INVALID_ARGUMENT);
SAME_NUMBER(kDeadlineExceeded, XLA_FFI_Error_Code_DEADLINE_EXCEEDED);
SAME_NUMBER(kFailedPrecondition, XLA_FFI_Error_Code_FAILED_PRECONDITION);
SAME_NUMBER(kAborted, XLA_FFI_Error_Code_ABORTED);
SAME_NUMBER(kInternal, XLA_FFI_Error_Code_INTERNAL);
SAME_NUMBER(kUnavailable, XLA_FFI_Error_Code_UNAVAILABLE);
SAME_NUMBER(kDataLoss, XLA_FFI_Error_Code_DATA_LOSS);
SAME_NUMBER(kPred, XLA_FFI_DataType_PRED);
SAME_NUMBER(kS8, XLA_FFI_DataType_S8);
SAME_NUMBER(kS16, XLA_FFI_DataType_S16);
SAME_NUMBER(kS32, XLA_FFI_DataType_S32);
SAME_NUMBER(kS64, XLA_FFI_DataType_S64);
SAME_NUMBER(kU8, XLA_FFI_DataType_U8);
SAME_NUMBER(kF16, XLA_FFI_DataType_F16);
SAME_NUMBER(kF32, XLA_FFI_DataType_F32);
SAME_NUMBER(kF64, XLA_FFI_DataType_F64);
SAME_NUMBER(kBF16, XLA_FFI_DataType_BF16);
SAME_NUMBER(kToken, XLA_FFI_DataType_TOKEN);
SAME_NUMBER(kF8E5M2, XLA_FFI_DataType_F8E5M2);
SAME_NUMBER(kF8E4M3FN, XLA_FFI_DataType_F8E4M3FN);
SAME_NUMBER(kBuffer, XLA_FFI_ArgType_BUFFER);
SAME_NUMBER(kBuffer, XLA_FFI_RetType_BUFFER);
SAME_NUMBER(kArray, XLA_FFI_AttrType_ARRAY);
SAME_NUMBER(kScalar, XLA_FFI_AttrType_SCALAR);
SAME_NUMBER(kString, XLA_FFI_AttrType_STRING);
SAME_NUMBER(kExecute, XLA_FFI_ExecutionStage_EXECUTE);
