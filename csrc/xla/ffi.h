// What is called of XLA, and what it calls us with, in our own words: the C interface by which compiled programs call foreign
// functions (XLA FFI). Every struct begins with its size, as who has made it knows it; nothing here is compiled against XLA.
//
// tests/frameworks/jax/prototypes.cc compares each line with the real c_api.h of the jaxlib that is installed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringdp::xla {

struct ErrorOfXla;  // made by XLA for us, and XLA's from the moment that we return it

// What an extension of a struct is; of those that we know.
constexpr int32_t kMetadata = 1;

struct Extension {
  size_t struct_size;
  int32_t type;
  Extension* next;
};

// Programs and handlers of other major versions do not fit together; the minor one grows with what is added.
constexpr int kMajor = 0, kMinor = 1;

struct Version {
  size_t struct_size;
  Extension* extensions;
  int major, minor;
};

// What XLA asks a handler before it calls it first: the version that it was made for.
struct Metadata {
  size_t struct_size;
  Version version;
  uint32_t traits;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

// As absl names what has gone wrong.
enum Code : int32_t {
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kFailedPrecondition = 9,
  kAborted = 10,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
};

struct MakeError {
  size_t struct_size;
  Extension* extensions;
  const char* message;
  int32_t code;
};

// Its first entries: XLA's functions that we call.
struct Functions {
  size_t struct_size;
  Extension* extensions;
  Version version;
  const void* not_used;
  ErrorOfXla* (*make_error)(MakeError*);
};

// Numbers of dtypes.
enum Type : int32_t {
  kPred = 1,
  kS8 = 2,
  kS16 = 3,
  kS32 = 4,
  kS64 = 5,
  kU8 = 6,
  kF16 = 10,
  kF32 = 11,
  kF64 = 12,
  kBF16 = 16,
  kToken = 17,
  kF8E5M2 = 19,
  kF8E4M3FN = 20,
};

struct Buffer {
  size_t struct_size;
  Extension* extensions;
  int32_t dtype;
  void* data;
  int64_t dimensions;
  int64_t* shape;
};

constexpr int32_t kBuffer = 1;                           // of arguments and of results
constexpr int32_t kArray = 1, kScalar = 3, kString = 4;  // of attributes

struct Bytes {
  const char* data;
  size_t size;
};
struct Scalar {
  int32_t dtype;
  void* value;
};
struct Array {
  int32_t dtype;
  size_t size;
  void* data;
};

struct Buffers {  // arguments, or results
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int32_t* types;
  void** buffers;
};

struct Attributes {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int32_t* types;
  Bytes** names;
  void** values;
};

constexpr int32_t kExecute = 3;  // of the stages in which a handler may be called

struct Frame {
  size_t struct_size;
  Extension* extensions;
  const Functions* functions;
  void* context;
  int32_t stage;
  Buffers arguments, results;
  Attributes attributes;
};

using Handler = ErrorOfXla*(Frame*);

}  // namespace ringdp::xla
