#include "agree/explore.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <unordered_set>

#include "agree/rounds.h"
#include "base/error.h"

namespace ringdp {

// Does to a `Rounds` what a protocol without one of its rules would do.
class BrokenRounds {
 public:
  static void submit_unnoticed(Rounds& rounds, uint64_t name, uint64_t signature, uint64_t token) {
    const bool changed = rounds.changed_;
    rounds.submit(name, signature, token);
    rounds.changed_ = changed;
  }
  static void leave_in_silence(Rounds& rounds) {
    rounds.leave();
    rounds.changed_ = false;
  }
  static void claim_same_signatures(const Rounds& rounds, Rounds::Words& contribution) {
    if (rounds.instance_ != Rounds::Instance::round) return;
    const size_t n = rounds.bit_words();
    std::fill_n(contribution.begin() + 2 + static_cast<int64_t>(n), n, Rounds::kNone);
  }
  static std::vector<Rounds::Decision> complete_keeping_ids(Rounds& rounds, const Rounds::Words& merged) {
    const auto before = rounds.pending_;
    auto decisions = rounds.complete(merged);
    for (auto& [name, p] : rounds.pending_)
      if (p.id < 0) p.id = before.at(name).id;
    return decisions;
  }
};

namespace explore {
namespace {

using Words = Rounds::Words;

// 128 bits of digest stand for a state: among 10^8 states two different ones agree with a chance below 10^-22.
struct Key {
  uint64_t low, high;
  bool operator==(const Key& other) const { return low == other.low && high == other.high; }
};
struct HashOfKey {
  size_t operator()(const Key& key) const { return key.low; }
};

uint64_t digest_of(const Words& words, uint64_t state) {
  for (const uint64_t word : words) {
    state = (state ^ word) * 0xff51afd7ed558ccdull;
    state ^= state >> 32;
  }
  return state;
}
Key key_of(const Words& words) {
  return {digest_of(words, 0x9e3779b97f4a7c15ull), digest_of(words, 0xc2b2ae3d27d4eb4full)};
}

struct RankState {
  Rounds rounds;
  bool inside = false, ready = false, left = false;
  uint64_t instances = 0;    // completed
  Words words{};             // inside: the contribution, or, once ready, the merged words
  std::vector<int> begun{};  // per name: submissions
  std::vector<int> ended{};  // per name: submissions that have ended
  std::vector<int> order{};  // names in the order of submission, where that matters
  Key key{};                 // of all of this but `instances`

  void set_key() {
    Words all = rounds.fingerprint();
    all.insert(all.end(),
               {all.size(), words.size(), order.size(), uint64_t(inside) | uint64_t(ready) << 1 | uint64_t(left) << 2});
    all.insert(all.end(), words.begin(), words.end());
    for (const auto* names : {&begun, &ended, &order})
      for (const int n : *names) all.push_back(static_cast<uint64_t>(n));
    key = key_of(all);
  }
};

struct State {
  std::vector<std::shared_ptr<const RankState>> ranks;  // shared with the states that differ on another rank
  uint64_t decided = 0;                                 // instances that some rank has completed
  Words decisions{};                                    // of the last of them
};

struct Event {
  enum Kind { submit, enter, complete, leave } kind;
  int rank, name;
  std::string text() const {
    const std::string who = "rank " + std::to_string(rank);
    switch (kind) {
      case submit:
        return who + " submits " + std::string(1, static_cast<char>('a' + name));
      case enter:
        return who + " enters";
      case complete:
        return who + " completes";
      case leave:
        return who + " leaves";
    }
    return who;
  }
};

struct Violation {
  std::string what;
};

class Exploration {
 public:
  Exploration(const Scenario& scenario, uint64_t most_states) : scenario_(scenario), most_states_(most_states) {}

  Outcome run() {
    State first;
    for (int r = 0; r < scenario_.ranks; ++r) {
      RankState rank{Rounds(r, scenario_.ranks, scenario_.names_kept, scenario_.names_at_once)};
      rank.begun.assign(static_cast<size_t>(scenario_.names), 0);
      rank.ended = rank.begun;
      rank.set_key();
      first.ranks.push_back(std::make_shared<const RankState>(std::move(rank)));
    }
    try {
      visit(first);
    } catch (const Violation& violation) {
      outcome_.violation = violation.what;
    } catch (const Error& error) {  // a check inside Rounds
      outcome_.violation = error.what();
    }
    for (const Event& event : path_) outcome_.path.push_back(event.text());
    return outcome_;
  }

 private:
  void visit(const State& state) {
    if (!seen_.insert(key(state)).second) return;
    if (++outcome_.states > most_states_) throw Violation{"more states than were allowed: it may never end"};
    const std::vector<Event> events = possible(state);
    for (const Event& event : events) {
      path_.push_back(event);
      State next = state;
      apply(next, event);
      visit(next);
      path_.pop_back();
    }
    if (events.empty()) check_end(state);
  }

  // --- what can happen next ---

  std::vector<Event> possible(const State& state) const {
    std::vector<Event> events;
    for (int r = 0; r < scenario_.ranks; ++r) {
      const std::vector<Event> own = possible_on(state, r);
      const bool independent = !own.empty() && (own.back().kind == Event::enter || own.back().kind == Event::complete);
      if (independent && !scenario_.every_order) return own;
      events.insert(events.end(), own.begin(), own.end());
    }
    return events;
  }

  std::vector<Event> possible_on(const State& state, int r) const {
    std::vector<Event> events;
    const RankState& rank = *state.ranks[r];
    for (int n = 0; n < scenario_.names; ++n)
      if (may_submit(rank, n)) events.push_back({Event::submit, r, n});
    if (may_leave(rank, r)) events.push_back({Event::leave, r, 0});
    if (rank.inside ? rank.ready : !rank.rounds.closed() && may_enter(state, r))
      events.push_back({rank.inside ? Event::complete : Event::enter, r, 0});
    return events;
  }

  bool may_submit(const RankState& rank, int name) const {
    return !rank.left && rank.rounds.left_rank() < 0 && rank.begun[name] < scenario_.times &&
           rank.begun[name] == rank.ended[name];
  }

  bool may_enter(const State& state, int r) const {
    const RankState& rank = *state.ranks[r];
    const auto has_entered = [&](int other) {
      const RankState& o = *state.ranks[other];
      return other != r && (o.instances > rank.instances || (o.instances == rank.instances && o.inside));
    };
    if (rank.rounds.wants_to_enter()) return true;
    if (scenario_.hears_neighbour_only) return has_entered((r + scenario_.ranks - 1) % scenario_.ranks);
    for (int other = 0; other < scenario_.ranks; ++other)
      if (has_entered(other)) return true;
    return false;
  }

  bool may_leave(const RankState& rank, int r) const {
    const auto& early = scenario_.leave_early;
    if (early.empty() || rank.left || rank.inside || !rank.rounds.between_rounds()) return false;
    if (std::find(early.begin(), early.end(), r) != early.end()) return true;
    const bool nothing_to_do = rank.rounds.left_rank() >= 0 || all_ended(rank);
    return nothing_to_do && !rank.rounds.pending();
  }

  bool all_ended(const RankState& rank) const {
    return std::all_of(rank.ended.begin(), rank.ended.end(), [&](int n) { return n == scenario_.times; });
  }

  // --- and what it does ---

  void apply(State& state, const Event& event) {
    auto rank = std::make_shared<RankState>(*state.ranks[event.rank]);
    switch (event.kind) {
      case Event::submit:
        submit(*rank, event.rank, event.name);
        break;
      case Event::enter:
        enter(*rank);
        break;
      case Event::complete:
        complete(state, *rank, event.rank);
        break;
      case Event::leave:
        leave(*rank);
        break;
    }
    rank->set_key();
    state.ranks[event.rank] = std::move(rank);
    if (event.kind == Event::enter) hand_out_merged(state);
  }

  bool differs(int rank, int name) const {
    const auto& all = scenario_.different;
    return std::find(all.begin(), all.end(), std::pair(rank, name)) != all.end();
  }
  bool differs_somewhere(int name) const {
    const auto& all = scenario_.different;
    return std::any_of(all.begin(), all.end(), [&](const auto& d) { return d.second == name; });
  }

  void submit(RankState& rank, int r, int name) {
    ++rank.begun[name];
    const uint64_t digest = static_cast<uint64_t>(name) + 1, signature = differs(r, name) ? 200 : 100;
    const auto token = static_cast<uint64_t>(name);
    if (scenario_.broken == Broken::submission_order) rank.order.push_back(name);
    if (scenario_.broken == Broken::forgets_changes_inside && rank.inside)
      BrokenRounds::submit_unnoticed(rank.rounds, digest, signature, token);
    else
      rank.rounds.submit(digest, signature, token);
  }

  void leave(RankState& rank) {
    rank.left = true;
    rank.ended = rank.begun;  // the leaving rank fails its own itself
    if (scenario_.broken == Broken::leaves_in_silence)
      BrokenRounds::leave_in_silence(rank.rounds);
    else
      rank.rounds.leave();
  }

  void enter(RankState& rank) {
    rank.inside = true;
    rank.words = rank.rounds.contribution();
    if (scenario_.broken == Broken::never_compares) BrokenRounds::claim_same_signatures(rank.rounds, rank.words);
  }

  void hand_out_merged(State& state) {
    for (const auto& rank : state.ranks)
      if (!rank->inside || rank->instances != state.ranks[0]->instances) return;
    const Words merged = merge_all(state);
    for (auto& shared : state.ranks) {
      auto rank = std::make_shared<RankState>(*shared);
      rank->words = merged;
      rank->ready = true;
      rank->set_key();
      shared = std::move(rank);
    }
  }

  // The dissemination merges in another order on each rank, and some contributions twice.
  Words merge_all(const State& state) const {
    std::optional<Words> first;
    for (int start = 0; start < scenario_.ranks; ++start) {
      Words merged = state.ranks[start]->words;
      for (int i = 0; i <= scenario_.ranks; ++i)
        state.ranks[start]->rounds.merge(merged, state.ranks[(start + i) % scenario_.ranks]->words);
      if (first && *first != merged) throw Violation{"the merged words depend on the order of merging"};
      first = merged;
    }
    return *first;
  }

  void complete(State& state, RankState& rank, int r) {
    const auto decisions = scenario_.broken == Broken::keeps_reused_id
                               ? BrokenRounds::complete_keeping_ids(rank.rounds, rank.words)
                               : rank.rounds.complete(rank.words);
    rank.inside = rank.ready = false;
    rank.words.clear();
    ++rank.instances;
    record(state, rank, in_broken_order(rank, decisions));
    const Words table = rank.rounds.shared_state();
    for (int other = 0; other < scenario_.ranks; ++other)
      if (const RankState& o = *state.ranks[other];
          other != r && o.instances == rank.instances && o.rounds.shared_state() != table)
        throw Violation{"two ranks that have completed the same instances keep different tables"};
  }

  std::vector<Rounds::Decision> in_broken_order(RankState& rank, std::vector<Rounds::Decision> decisions) const {
    if (scenario_.broken != Broken::submission_order) return decisions;
    std::vector<uint64_t> sequences;
    for (const auto& d : decisions) sequences.push_back(d.sequence);
    const auto place = [&](uint64_t token) {
      return std::find(rank.order.begin(), rank.order.end(), static_cast<int>(token)) - rank.order.begin();
    };
    std::sort(decisions.begin(), decisions.end(),
              [&](const auto& a, const auto& b) { return place(a.token) < place(b.token); });
    for (size_t i = 0; i < decisions.size(); ++i) {
      decisions[i].sequence = sequences[i];
      rank.order.erase(rank.order.begin() + place(decisions[i].token));
    }
    return decisions;
  }

  // The first rank that completes an instance says what was decided in it; the others must decide the same.
  void record(State& state, RankState& rank, const std::vector<Rounds::Decision>& decisions) {
    Words shared;
    for (const Rounds::Decision& d : decisions) {
      const int name = static_cast<int>(d.token);
      if (++rank.ended[name] != rank.begun[name]) throw Violation{"a name ended more often than it was submitted"};
      if (d.kind == Rounds::Decision::peer_left) {
        ++outcome_.peers_left;
        if (scenario_.leave_early.empty()) throw Violation{"peer_left, though no rank leaves"};
        continue;  // each rank hears this of what it has itself submitted
      }
      ++(d.kind == Rounds::Decision::run ? outcome_.runs : outcome_.mismatches);
      if ((d.kind == Rounds::Decision::mismatch) != differs_somewhere(name))
        throw Violation{d.kind == Rounds::Decision::run ? "different signatures ran" : "equal signatures did not run"};
      shared.insert(shared.end(), {uint64_t(d.kind), d.token, d.sequence});
    }
    if (rank.instances > state.decided) {
      state.decided = rank.instances;
      state.decisions = shared;
    } else if (shared != state.decisions) {
      throw Violation{"two ranks have decided differently in the same instance"};
    }
  }

  // --- where nothing more can happen ---

  void check_end(const State& state) {
    ++outcome_.ends;
    const bool leaves = !scenario_.leave_early.empty();
    for (int r = 0; r < scenario_.ranks; ++r) {
      const RankState& rank = *state.ranks[r];
      const std::string who = "rank " + std::to_string(r);
      if (rank.inside) throw Violation{"deadlock: " + who + " waits inside an instance"};
      if (leaves && !(rank.left && rank.rounds.closed())) throw Violation{"deadlock: " + who + " never closes"};
      if (rank.rounds.pending() || rank.begun != rank.ended) throw Violation{"deadlock: " + who + " waits for a name"};
      if (!leaves && !all_ended(rank)) throw Violation{who + " could not submit all its names"};
    }
  }

  Key key(const State& state) const {
    uint64_t least = ~uint64_t{0};
    for (const auto& rank : state.ranks) least = std::min(least, rank->instances);
    Words all = {state.decided - least};
    all.insert(all.end(), state.decisions.begin(), state.decisions.end());
    for (const auto& rank : state.ranks)
      all.insert(all.end(), {rank->instances - least, rank->key.low, rank->key.high});
    return key_of(all);
  }

  const Scenario& scenario_;
  const uint64_t most_states_;
  std::unordered_set<Key, HashOfKey> seen_;
  std::vector<Event> path_;
  Outcome outcome_;
};

}  // namespace

Outcome explore(const Scenario& scenario, uint64_t most_states) { return Exploration(scenario, most_states).run(); }

}  // namespace explore
}  // namespace ringdp
