#include "agree/header.h"

#include <sstream>

#include "base/dtype.h"

namespace ringdp {

namespace {

class Comparison {
 public:
  explicit Comparison(int their_rank) : their_rank_(their_rank) {}

  template <class T>
  Comparison& field(const char* name, T mine, T theirs) {
    if (mine != theirs)
      text_ << (text_.tellp() > 0 ? "; " : "") << name << " " << mine << " here, " << theirs << " on rank "
            << their_rank_;
    return *this;
  }
  std::string text() const { return text_.str(); }

 private:
  int their_rank_;
  std::ostringstream text_;
};

std::string dtype_text(uint8_t code) {
  return code < kDtypes ? name_of(static_cast<Dtype>(code)) : "unknown " + std::to_string(code);
}
std::string op_text(uint8_t code) {
  return code < kReduceOps ? name_of(static_cast<ReduceOp>(code)) : "unknown " + std::to_string(code);
}

std::string place_text(uint8_t flags) { return flags & Header::kOnGpu ? "on a GPU" : "in host memory"; }
std::string checksums_text(uint8_t flags) { return flags & Header::kChecksum ? "on" : "off"; }

}  // namespace

std::string difference(const Header& mine, const Header& theirs, int their_rank) {
  if (theirs.magic != Header::kMagic) return "the message from rank " + std::to_string(their_rank) + " is no header";
  return Comparison(their_rank)
      .field("wire version", mine.version, theirs.version)
      .field("generation", mine.generation, theirs.generation)
      .field("process set", mine.process_set, theirs.process_set)
      .field("digest", mine.digest, theirs.digest)
      .field("sequence", mine.sequence, theirs.sequence)
      .field("bucket", mine.bucket, theirs.bucket)
      .field("part", mine.part, theirs.part)
      .field("kind", int{mine.kind}, int{theirs.kind})
      .field("half", int{mine.half}, int{theirs.half})
      .field("dtype", dtype_text(mine.dtype), dtype_text(theirs.dtype))
      .field("operation", op_text(mine.op), op_text(theirs.op))
      .field("count", mine.count, theirs.count)
      .field("scale", mine.scale, theirs.scale)
      .field("root", mine.root, theirs.root)
      .field("place", place_text(mine.flags), place_text(theirs.flags))
      .field("checksums (RINGDP_CHECKSUM)", checksums_text(mine.flags), checksums_text(theirs.flags))
      .text();
}

}  // namespace ringdp
