// Numbered places in memory that is used again.
#include "base/slots.h"

#include <string>
#include <vector>

#include "check.h"

using namespace ringdp;

TEST(slots_find_what_is_there_and_nothing_that_was) {
  Slots<std::string> slots;
  CHECK(slots.empty() && slots.find(0) == nullptr && slots.find(1) == nullptr);
  const uint64_t a = slots.add("a"), b = slots.add("b");
  std::string* const place_of_b = slots.find(b);
  slots.erase(a);
  const uint64_t c = slots.add("c");
  CHECK(a != c && slots.find(a) == nullptr && *slots.find(c) == "c", "the place of a is used again, its number is not");
  for (int i = 0; i < 1000; ++i) slots.add("more");
  CHECK(slots.find(b) == place_of_b && *place_of_b == "b", "what is there keeps its address");
  CHECK(!ringdp::tests::error_of([&] { slots.erase(a); }).empty(), "it was gone");
}

TEST(slots_may_be_emptied_while_one_goes_through_them) {
  Slots<std::string> slots;
  std::vector<uint64_t> numbers;
  for (int i = 0; i < 10; ++i) numbers.push_back(slots.add(std::to_string(i)));
  slots.erase(numbers[4]);
  std::string seen;
  slots.for_each([&](uint64_t number, std::string& text) {
    seen += text;
    slots.erase(number);
  });
  CHECK(seen == "012356789" && slots.empty(), seen);
}
