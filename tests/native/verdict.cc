#include "verdict.h"

#include <algorithm>
#include <optional>
#include <sstream>

namespace ringdp::tests {

namespace {

enum class Must { succeed, fail, either };

class Judge {
 public:
  Judge(const Scenario& scenario, const std::vector<std::vector<Outcome>>& outcomes)
      : scenario_(scenario), outcomes_(outcomes) {
    for (const Task& task : scenario.tasks)
      if (task.culprit >= 0 && task.is_planned() && !wrong_step_) wrong_step_ = task.step;
  }

  std::string verdict() const {
    for (int task = 0; task < static_cast<int>(scenario_.tasks.size()); ++task) {
      std::string wrong = judge(task);
      if (wrong.empty() && task > 0) wrong = judge_with_group(task);
      if (!wrong.empty()) return wrong;
    }
    return "";
  }

 private:
  const Task& at(int task) const { return scenario_.tasks[static_cast<size_t>(task)]; }
  const Outcome& outcome(int task, int rank) const {
    return outcomes_[static_cast<size_t>(task)][static_cast<size_t>(rank)];
  }

  std::string judge(int task) const {
    const Must must = what_must_be(task);
    std::optional<bool> all;
    for (const int rank : at(task).ranks) {
      const Outcome& o = outcome(task, rank);
      if (o.how == Outcome::absent || o.how == Outcome::open) return says(task, rank, "does not end");
      if (o.how == Outcome::wrong) return says(task, rank, "is wrong");
      const bool has_left = scenario_.fault == Fault::leaves && rank == scenario_.culprit;
      const bool succeeds = o.how == Outcome::right;
      if (has_left && (succeeds || o.kind == ErrorKind::closed)) continue;
      if (has_left) return says(task, rank, "failed otherwise than by leaving");
      if (must == Must::succeed && !succeeds) return says(task, rank, "failed");
      if (must == Must::fail && succeeds) return says(task, rank, "succeeded");
      if (!succeeds && is_told_before(task) && o.how == Outcome::touched)
        return says(task, rank, "failed, and has written its output");
      if (!succeeds && !is_of_its_kind(task, o.kind)) return says(task, rank, "failed for another reason");
      if (all && *all != succeeds && is_alike(task))
        return says(task, rank, "ended in another way than on other ranks");
      all = succeeds;
    }
    return "";
  }

  // Those of a group end together.
  std::string judge_with_group(int task) const {
    const bool is_settled = scenario_.fault != Fault::stops && scenario_.fault != Fault::missing;
    if (!is_settled || at(task).group < 0 || at(task - 1).group != at(task).group) return "";
    for (const int rank : at(task).ranks) {
      const bool has_left = scenario_.fault == Fault::leaves && rank == scenario_.culprit;
      const bool alike = (outcome(task, rank).how == Outcome::right) == (outcome(task - 1, rank).how == Outcome::right);
      if (!has_left && !alike) return says(task, rank, "ended in another way than the rest of its group");
    }
    return "";
  }

  Must what_must_be(int task) const {
    const Task& t = at(task);
    const bool has_culprit = scenario_.is_member(task, scenario_.culprit),
               culprit_comes = scenario_.submits(task, scenario_.culprit);
    switch (scenario_.fault) {
      case Fault::mismatch:
        if (differs(task)) return Must::fail;
        return t.is_planned() && wrong_step_ && t.step >= *wrong_step_ ? Must::either : Must::succeed;
      case Fault::joins:
        return lacks_whom_it_needs(task) ? Must::fail : Must::succeed;
      case Fault::leaves:
        return !has_culprit ? Must::succeed : culprit_comes ? Must::either : Must::fail;
      case Fault::missing:
        return has_culprit && !culprit_comes ? Must::fail : Must::either;
      case Fault::stops:
        return Must::either;
      default:
        return Must::succeed;
    }
  }

  // A rank means something else by it, or by another of its group.
  bool differs(int task) const {
    const Task& t = at(task);
    if (t.group < 0) return t.culprit >= 0;
    return std::any_of(scenario_.tasks.begin(), scenario_.tasks.end(),
                       [&](const Task& other) { return other.group == t.group && other.culprit >= 0; });
  }

  // An all-to-all needs every rank, a broadcast its root.
  bool lacks_whom_it_needs(int task) const {
    const Task& t = at(task);
    const std::vector<int>& set = scenario_.sets[static_cast<size_t>(t.set)];
    if (t.kind == OpKind::alltoall) return t.ranks.size() < set.size();
    return t.kind == OpKind::broadcast && !scenario_.submits(task, set[static_cast<size_t>(t.root)]);
  }

  // What differs is known before anything is exchanged.
  bool is_told_before(int task) const {
    return !at(task).is_planned() && (scenario_.fault == Fault::mismatch || scenario_.fault == Fault::leaves);
  }

  bool is_alike(int task) const {
    if (scenario_.fault == Fault::stops || scenario_.fault == Fault::missing) return false;
    return !at(task).is_planned() || scenario_.fault == Fault::leaves;
  }

  bool is_of_its_kind(int task, ErrorKind kind) const {
    switch (scenario_.fault) {
      case Fault::mismatch:
        return kind == (at(task).is_planned() && !at(task).is_vote ? ErrorKind::peer : ErrorKind::mismatch) ||
               (at(task).is_vote && kind == ErrorKind::peer);
      case Fault::joins:
      case Fault::leaves:
        return kind == ErrorKind::peer;
      default:
        return true;
    }
  }

  std::string says(int task, int rank, const char* what) const {
    const Task& t = at(task);
    std::ostringstream out;
    out << "task " << task << " (";
    if (t.is_planned())
      out << (t.is_vote ? "vote" : "bucket " + std::to_string(t.bucket)) << " of step " << t.step;
    else
      out << name_of(t.kind) << " '" << t.name << "'";
    out << " of " << t.count << " " << name_of(t.dtype) << ", " << name_of(t.op) << ", set " << t.set;
    if (t.culprit >= 0) out << ", rank " << t.culprit << " differs";
    out << ") " << what << " on rank " << rank << "; the ranks' outcomes:";
    for (const int other : t.ranks) out << "\n  rank " << other << ": " << words(outcome(task, other));
    return out.str();
  }

  static std::string words(const Outcome& o) {
    constexpr const char* how[] = {"not submitted", "under way", "right", "wrong", "failed, output written", "failed"};
    return std::string(how[o.how]) + (o.text.empty() ? "" : ": " + o.text);
  }

  const Scenario& scenario_;
  const std::vector<std::vector<Outcome>>& outcomes_;
  std::optional<int> wrong_step_;
};

}  // namespace

std::string verdict(const Scenario& scenario, const std::vector<std::vector<Outcome>>& outcomes) {
  return Judge(scenario, outcomes).verdict();
}

}  // namespace ringdp::tests
