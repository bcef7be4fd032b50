#include "agree/rounds.h"

#include <algorithm>

#include "base/check.h"

namespace ringdp {

namespace {

bool bit(const uint64_t* words, size_t i) { return words[i / 64] >> (i % 64) & 1; }
void clear_bit(uint64_t* words, size_t i) { words[i / 64] &= ~(uint64_t{1} << (i % 64)); }

}  // namespace

void Rounds::submit(uint64_t name, uint64_t signature, Token token) {
  RINGDP_CHECK(!leaving_ && left_rank_ < 0 && pending_.count(name) == 0);
  int id = -1;
  for (size_t i = 0; i < ids_.size(); ++i)
    if (ids_[i].name == name) id = static_cast<int>(i);
  pending_[name] = {signature, token, id};
  changed_ = true;
}

void Rounds::leave() {
  RINGDP_CHECK(between_rounds());
  leaving_ = changed_ = true;
  pending_.clear();
}

size_t Rounds::words() const {
  switch (instance_) {
    case Instance::round:
      return 2 + 3 * bit_words();
    case Instance::names:
      return names_at_once_;
    case Instance::signatures:
      return 2 * to_compare_.size();
  }
  return 0;
}

Rounds::Words Rounds::contribution() {
  follows_ = false;
  if (instance_ == Instance::names) return names_words();
  if (instance_ == Instance::signatures) return signature_words();
  changed_ = false;
  return round_words();
}

// Layout: flags, lowest leaving rank, then three bit vectors over the ids: pending, same signature, idle.
Rounds::Words Rounds::round_words() const {
  const size_t n = bit_words();
  Words words(2 + 3 * n, kNone);
  uint64_t *pending = &words[0] + 2, *same = pending + n, *idle = same + n;
  std::fill(pending, pending + n, 0);
  words[0] = leaving_ ? kNothingNew | kLeaving : uint64_t{kNothingNew};
  words[1] = leaving_ ? uint64_t(rank_) : kNone;
  for (const auto& [name, p] : pending_) {
    if (p.id < 0) {
      words[0] &= ~uint64_t{kNothingNew};
      continue;
    }
    pending[p.id / 64] |= uint64_t{1} << (p.id % 64);
    clear_bit(idle, p.id);
    if (p.signature != ids_[p.id].signature) clear_bit(same, p.id);
  }
  return words;
}

Rounds::Words Rounds::names_words() const {
  Words words;
  for (const auto& [name, p] : pending_)  // a map: ascending
    if (p.id < 0 && words.size() < names_at_once_) words.push_back(name);
  words.resize(names_at_once_, kNone);
  return words;
}

Rounds::Words Rounds::signature_words() const {
  Words words;
  for (const int id : to_compare_) {
    const auto p = pending_.find(ids_[id].name);
    RINGDP_CHECK(p != pending_.end());
    words.push_back(p->second.signature);
    words.push_back(~p->second.signature);
  }
  return words;
}

void Rounds::merge(Words& mine, const Words& theirs) const {
  RINGDP_CHECK(mine.size() == theirs.size());
  if (instance_ == Instance::names) {
    Words both;
    std::set_union(mine.begin(), mine.end(), theirs.begin(), theirs.end(), std::back_inserter(both));
    both.resize(names_at_once_, kNone);
    mine = std::move(both);
    return;
  }
  for (size_t i = 0; i < mine.size(); ++i) {
    const bool minimum = instance_ == Instance::signatures || i == 1;
    mine[i] = minimum ? std::min(mine[i], theirs[i]) : mine[i] & theirs[i];
  }
}

std::vector<Rounds::Decision> Rounds::complete(const Words& merged) {
  std::vector<Decision> decisions;
  if (instance_ == Instance::round)
    decisions = complete_round(merged);
  else if (instance_ == Instance::names)
    complete_names(merged);
  else
    decisions = complete_signatures(merged);
  next_instance();
  return decisions;
}

void Rounds::next_instance() {
  if (!to_compare_.empty()) {
    instance_ = Instance::signatures;
  } else if (names_follow_) {
    instance_ = Instance::names;
    names_follow_ = false;
  } else {
    instance_ = Instance::round;
    return;
  }
  follows_ = true;
}

std::vector<Rounds::Decision> Rounds::complete_round(const Words& merged) {
  std::vector<Decision> decisions;
  const size_t n = bit_words();
  const uint64_t *pending = &merged[0] + 2, *same = pending + n, *idle = same + n;
  names_follow_ = !(merged[0] & kNothingNew);
  closed_ = merged[0] & kLeaving;
  for (size_t i = 0; i < ids_.size(); ++i) {
    ids_[i].idle = bit(idle, i);
    if (!bit(pending, i)) continue;
    if (bit(same, i))
      decisions.push_back(take(static_cast<int>(i), Decision::run));
    else
      to_compare_.push_back(static_cast<int>(i));
  }
  if (merged[1] != kNone) {
    left_rank_ = static_cast<int>(merged[1]);
    // A rank that leaves has nothing pending, so nothing was ready in this round, and never will be again.
    for (const auto& [name, p] : pending_) decisions.push_back({Decision::peer_left, p.token, 0});
    pending_.clear();
  }
  return decisions;
}

void Rounds::complete_names(const Words& merged) {
  for (const uint64_t name : merged) {
    if (name == kNone) break;
    const int id = assign_id(name);
    const auto p = pending_.find(name);
    if (p == pending_.end()) continue;
    p->second.id = id;
    changed_ = true;
  }
  // More new names than one instance holds, or the name of an id that was reused: those go on in the next round.
  for (const auto& [name, p] : pending_) changed_ |= p.id < 0;
}

int Rounds::assign_id(uint64_t name) {
  const int id = find_free_id();
  for (auto& [other, p] : pending_)
    if (p.id == id) p.id = -1;  // submitted here after the round that found it idle everywhere: new again
  ids_[id] = {name, 0, ++clock_, false};
  return id;
}

int Rounds::find_free_id() {
  int best = -1;
  for (size_t i = 0; i < ids_.size(); ++i) {
    if (ids_[i].name == 0) return static_cast<int>(i);
    if (ids_[i].idle && (best < 0 || ids_[i].last_used < ids_[best].last_used)) best = static_cast<int>(i);
  }
  if (best >= 0 && ids_.size() >= names_kept_) return best;
  ids_.emplace_back();
  return static_cast<int>(ids_.size()) - 1;
}

std::vector<Rounds::Decision> Rounds::complete_signatures(const Words& merged) {
  std::vector<Decision> decisions;
  for (size_t i = 0; i < to_compare_.size(); ++i) {
    const bool equal = merged[2 * i] == ~merged[2 * i + 1];
    ids_[to_compare_[i]].signature = equal ? merged[2 * i] : 0;
    decisions.push_back(take(to_compare_[i], equal ? Decision::run : Decision::mismatch));
  }
  to_compare_.clear();
  return decisions;
}

Rounds::Decision Rounds::take(int id, Decision::Kind kind) {
  const auto p = pending_.find(ids_[id].name);
  RINGDP_CHECK(p != pending_.end());
  const Decision decision{kind, p->second.token, sequence_++};
  pending_.erase(p);
  ids_[id].last_used = ++clock_;
  return decision;
}

Rounds::Words Rounds::shared_state() const {
  Words w = {uint64_t(instance_),
             sequence_,
             clock_,
             uint64_t(closed_),
             uint64_t(names_follow_),
             uint64_t(int64_t{left_rank_}),
             ids_.size(),
             to_compare_.size()};
  for (const Id& id : ids_) w.insert(w.end(), {id.name, id.signature, id.last_used, uint64_t(id.idle)});
  for (const int id : to_compare_) w.push_back(uint64_t(id));
  return w;
}

Rounds::Words Rounds::fingerprint() const {
  Words w = shared_state();
  w.insert(w.end(), {uint64_t(changed_), uint64_t(follows_), uint64_t(leaving_)});
  for (const auto& [name, p] : pending_) w.insert(w.end(), {name, p.signature, p.token, uint64_t(int64_t{p.id})});
  return w;
}

}  // namespace ringdp
