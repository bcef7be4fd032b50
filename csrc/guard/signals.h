// Signals that end a process. The handlers touch prepared memory alone, and hand on to
// whoever was there before.
//
// SEGV, BUS, FPE, ILL, ABRT: noted in the flight recorder, which is brought into the report's folder; then as before.
// After ABRT the process ends within seconds, whatever that does.
// TERM: where this rank has just found out who is to blame, a launcher ends the job: the recorder is brought away, and the process ends. Where nobody
// else handles it the process ends, too, and takes the recorder's name along. Else it is the other handler's.
#pragma once

#include "guard/flight.h"

namespace ringdp {

namespace signals {

// For one flight recorder at a time.
void install(Flight& flight, const std::string& folder);
void remove(const Flight& flight);

// This rank's recorder into the folder; what was there of it is replaced. Its name where it lay is taken away.
void save();

}  // namespace signals
}  // namespace ringdp
