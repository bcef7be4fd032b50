// What travels to say what an operation is: digests and headers.
#include <cstring>
#include <string>

#include "agree/digest.h"
#include "agree/header.h"
#include "base/dtype.h"
#include "check.h"

using namespace ringdp;
// They travel: numbers that another machine would not compute would make every operation a mismatch.
TEST(digests_are_the_same_numbers_on_every_machine) {
  CHECK(Digest().value() == 0xefd01f60ba992926u);
  CHECK(Digest().add("grad.0").add(uint64_t{7}).value() == 0x10fe64219bcca363u);
  CHECK(Digest().add("\xff\x80").value() == 0xbcf5fb36a1b393c9u, "char is signed on some machines");
}

TEST(a_header_lies_on_the_wire_byte_for_byte) {
  Header h;
  h.generation = 0x04030201;
  h.process_set = 0x08070605;
  h.root = -2;
  h.digest = 0x1817161514131211;
  h.sequence = 0x2827262524232221;
  h.count = 0x3837363534333231;
  h.scale = 0x4847464544434241;
  h.bucket = 0x54535251;
  h.part = 0x58575655;
  h.kind = 0x61, h.dtype = 0x62, h.op = 0x63, h.flags = Header::kPoison, h.half = 2;
  const unsigned char wire[64] = {
      0x44, 0x52, 2,    0,    1,    2,    3,    4,    5,    6,    7,    8,    0xfe, 0xff, 0xff, 0xff,
      0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28,
      0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48,
      0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x61, 0x62, 0x63, 1,    2,    0,    0,    0,
  };
  CHECK(std::memcmp(&h, wire, sizeof wire) == 0);
  CHECK(h.poisoned());
}

TEST(headers_that_differ_say_in_what) {
  Header mine, theirs;
  mine.dtype = theirs.dtype = static_cast<uint8_t>(Dtype::float32);
  CHECK(difference(mine, theirs, 1).empty());
  mine.count = 10, theirs.count = 12;
  theirs.dtype = static_cast<uint8_t>(Dtype::bfloat16);
  CHECK(difference(mine, theirs, 3) == "dtype float32 here, bfloat16 on rank 3; count 10 here, 12 on rank 3",
        difference(mine, theirs, 3));
  theirs.magic = 0;
  CHECK(difference(mine, theirs, 3) == "the message from rank 3 is no header");
}
