// The engine that code finds which holds none: programs that were compiled once, and run whenever their framework likes.
#pragma once

#include <memory>

#include "engine/engine.h"

namespace ringdp {

// From now on, in this process (not in those forked from it). None: there is none any more.
void set_current(std::shared_ptr<Engine> engine);

// Whoever holds it keeps it. Throws ErrorKind::closed where there is none.
std::shared_ptr<Engine> current_engine();

}  // namespace ringdp
