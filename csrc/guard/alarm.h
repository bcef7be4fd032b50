// A death on one host, told to those on others: they see no process there, and would wait until their deadline.
//
// Each survivor of the host tells its share of all ranks elsewhere, and that of the survivor after it, so that one which is
// itself about to end does not matter. Who hears of it ends its waits by that verdict, as the survivors do.
//
// A rank that is ended by an exception tells the others as well: they note it for the report, and go on until the launcher
// ends them, so that one traceback is printed and not all.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "guard/dispatches.h"
#include "guard/watch.h"

namespace ringdp {

class Alarm {
 public:
  // `control`: of all ranks of the job. It and the watch must outlive this.
  Alarm(Transport& control, Watch& watch);

  // By whoever takes turns, as often as it likes: the verdict, once a rank has died.
  std::optional<std::string> look();
  // The same, when a message could not be sent or received: what there is to know may be on its way. If it does not come, a
  // rank that the transport says is gone.
  std::optional<std::string> look_for_a_while();
  // This rank is about to end the job, by an exception.
  void tell_of_exception(const std::string& verdict);
  bool has_told();  // whatever there was to tell has gone

  // Those whom `rank` tells. groups: by rank, a number that ranks of a host have in common. silent: those of this host that
  // tell nobody.
  static std::vector<int> listeners(int rank, const std::vector<int>& groups, const std::vector<int>& silent);

  struct Message {
    static constexpr uint32_t kMagic = 0x72646561, kVersion = 1;
    uint32_t magic = kMagic, version = kVersion;
    uint32_t is_exception = 0, unused = 0;
    char verdict[sizeof FlightHead::verdict] = {};
  };
  static std::optional<Message> parse(const std::vector<std::byte>& data);

 private:
  void see(const std::vector<int>& dead);
  void listen();
  void tell(const std::vector<int>& listeners, const std::string& verdict, bool is_exception);

  Transport& control_;
  Watch& watch_;
  const int rank_;
  Dispatches dispatches_;
  std::optional<std::string> verdict_;  // on a death, once it has been told, or heard
  // The job is being ended by an exception; this rank waits for that until then.
  std::optional<Deadline> end_comes_;
  Clock::time_point last_look_, death_seen_;
};

}  // namespace ringdp
