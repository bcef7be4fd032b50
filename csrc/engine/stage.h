// Where an operation stands: one enum for queue, log, timeline and reports.
#pragma once

namespace ringdp {

enum class Stage : int { submit, agree, pack, reduce, unpack, done };

constexpr const char* name_of(Stage stage) {
  constexpr const char* names[] = {"SUBMIT", "AGREE", "PACK", "REDUCE", "UNPACK", "DONE"};
  return names[static_cast<int>(stage)];
}

}  // namespace ringdp
