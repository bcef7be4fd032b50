// Meetings of ranks that share memory: each tells all others by letter (shared/mail.h). So each hears every other itself,
// and keeps what each has said.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "agree/meetings.h"
#include "shared/host.h"
#include "shared/mail.h"

namespace ringdp {

class Letters final : public Meetings {
 public:
  // members: their ranks in the process set, in order; places: by which the host knows them (their ranks in the job);
  // parts[i]: where member i's part of the mail lies. One member alone needs no host.
  Letters(std::shared_ptr<Host> host, std::vector<int> members, std::vector<int> places, int me,
          const std::vector<std::byte*>& parts);

  int me() const { return me_; }
  const std::vector<int>& members() const { return members_; }
  const std::vector<int>& places() const { return places_; }
  Host* host() const { return host_.get(); }

  Meeting& come(const Note& note, const void* payload, uint64_t token) override;
  void close(Meeting& meeting) override;
  bool poll() override;
  bool all_left() const override { return has_left() && left_count_ + 1 == static_cast<int>(members_.size()); }
  bool busy() const override { return mail_ && !mail_->all_posted(); }
  int drawer() const override { return members_[0]; }

  bool has_left(int place) const;
  void ring() const;  // wakes the other members

 private:
  using Meetings::has_left;
  struct Gathering final : Meeting {
    int missing = 0;
    std::vector<std::pair<int, Received>> later;  // of the next meetings about the same thing
  };

  Gathering& at(const Subject& subject);
  void receive(int member, const Note& note, const std::byte* payload);
  void take(Gathering& meeting, int member, const Note& note, const std::byte* payload);
  void come_with_mark(const Subject& subject, Gathering& meeting);
  void tell(const Note& note, const void* payload);
  void tell_of_leaving() override;
  void mark_open() override;

  const std::shared_ptr<Host> host_;
  const std::vector<int> members_, places_;
  const int me_;
  std::unique_ptr<Mail> mail_;
  Table<Gathering> meetings_;
  std::vector<bool> has_left_;
  int left_count_ = 0;
};

}  // namespace ringdp
