// The Python module ringdp._core: engines, handles, and what the tests look at. Thin: no logic of its own.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/huge_pages.h"
#include "base/options.h"
#include "bindings/agreement.h"
#include "bindings/choice.h"
#include "bindings/gpu.h"
#include "bindings/guard.h"
#include "bindings/host.h"
#include "bindings/kernels.h"
#include "bindings/local.h"
#include "bindings/schedules.h"
#include "bindings/tensor.h"
#include "bindings/xla.h"
#include "bucket/plan.h"
#include "engine/engine.h"
#include "transport/mpi.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace ringdp;

namespace {

// The one place where a core error becomes a Python exception.
void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Error& error) {
    const nb::object type = nb::module_::import_("ringdp.errors").attr(python_class(error.kind()));
    PyErr_SetString(type.ptr(), error.what());
  }
}

void look_for_signals() {
  nb::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

bool wait(Engine& engine, Handle& handle, double seconds) {
  if (handle.done()) return true;
  nb::gil_scoped_release release;
  return engine.wait(handle, Deadline::in(Seconds(seconds)), look_for_signals);
}

void wait_for_end(Engine& engine, Handle& handle) {
  if (handle.done()) return;
  nb::gil_scoped_release release;
  engine.wait_for_end(handle, look_for_signals);
}

// The output that the operation allocated, handed over: a NumPy array of bytes that owns it.
nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>> take_output(Handle& handle) {
  Result& result = handle.result();
  std::byte* data = result.output.release();
  if (data == nullptr) fail(ErrorKind::usage, "this operation has no output of its own, or it was taken already");
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<std::byte*>(p); });
  const size_t shape[1] = {result.output_bytes};
  return {data, 1, shape, owner};
}

// An operation on a tensor; its name, or its place in a plan, is still to be set.
Submission on_tensor(OpKind kind, int process_set, const void* input, void* output, Dtype dtype,
                     std::vector<uint64_t> shape, int op, double prescale, double postscale) {
  Submission s;
  s.kind = kind;
  s.process_set = process_set;
  s.input = input;
  s.output = output;
  s.dtype = dtype;
  s.shape = std::move(shape);
  s.op = static_cast<ReduceOp>(op);
  s.prescale = prescale;
  s.postscale = postscale;
  return s;
}

void* at(uint64_t address) { return reinterpret_cast<void*>(address); }

Submission named(int kind, std::string name, int process_set, uint64_t input, uint64_t output, int dtype,
                 std::vector<uint64_t> shape, int op, double prescale, double postscale, int root,
                 std::vector<uint64_t> splits, int wide_dtype, uint64_t wide_input, uint64_t wide_output) {
  Submission s = on_tensor(static_cast<OpKind>(kind), process_set, at(input), at(output), static_cast<Dtype>(dtype),
                           std::move(shape), op, prescale, postscale);
  s.name = std::move(name);
  s.root = root;
  s.splits = std::move(splits);
  s.wide = {static_cast<Dtype>(wide_dtype), at(wide_input), at(wide_output)};
  return s;
}

// How the core asks for an output. Called, and dropped, by the engine's thread, too, so each takes the GIL by itself.
std::function<void*(uint64_t)> asks(nb::callable allocate) {
  const std::shared_ptr<nb::callable> held(new nb::callable(std::move(allocate)), [](nb::callable* last) {
    nb::gil_scoped_acquire gil;
    delete last;
  });
  return [held](uint64_t rows) -> void* {
    nb::gil_scoped_acquire gil;
    try {
      return at(nb::cast<uint64_t>((*held)(rows)));
    } catch (nb::python_error& error) {
      error.discard_as_unraisable("an output for ringdp");
      return nullptr;
    }
  };
}

void place_on_gpu(Submission& s, int gpu, uint64_t stream) {
  s.place = std::make_shared<OnGpu>(OnGpu{Gpu::of(gpu), stream, nullptr, nullptr});
}

// What the current stream does from now on comes after the operation. Nothing waits here.
void order(Handle& handle, uint64_t stream) {
  const Gpu::Point completed = handle.result().completed;
  if (completed) completed->hold_up(stream_at(stream));
}

std::shared_ptr<Handle> submit(Engine& engine, Submission& s) {
  nb::gil_scoped_release release;
  return engine.submit(std::move(s));
}

std::vector<std::shared_ptr<Handle>> submit_group(Engine& engine, const std::vector<Submission*>& submissions,
                                                  const std::string& layout) {
  std::vector<Submission> all;
  for (Submission* submission : submissions) all.push_back(std::move(*submission));
  nb::gil_scoped_release release;
  return engine.submit_group(std::move(all), layout);
}

// Where it fails, or is interrupted, while its memory is in use, the tensors are given to `world`, which holds them.
void wait_for(Engine& engine, Submission&& s, nb::handle name, nb::handle world, nb::handle source, nb::handle output) {
  if (!name.is_none() && !nb::try_cast(name, s.name)) throw nb::type_error("the name of an operation must be a str");
  std::shared_ptr<Handle> handle;
  try {
    const Engine::Caller caller(engine);
    handle = engine.call(std::move(s));  // with the GIL: to give it away would take longer than a small operation
    if (!handle->done()) {
      nb::gil_scoped_release release;
      engine.wait_for_end(*handle, look_for_signals);
    }
    handle->result();
  } catch (...) {
    if (handle && handle->memory_in_use()) world.attr("hold")(handle, nb::make_tuple(source, output));
    throw;
  }
}

// The blocking all-reduce. False, and nothing done, where the memory of a tensor cannot be used as it lies there.
bool allreduce(Engine& engine, nb::handle name, int process_set, nb::handle source, nb::handle output, nb::handle op,
               double prescale, double postscale, nb::handle world) {
  const bool in_place = source.is(output);
  const PythonTensor from(source, in_place);
  if (!from.usable()) return false;
  void* to = from.data();
  std::optional<PythonTensor> other;
  if (!in_place) {
    if (!other.emplace(output, true).usable()) return false;
    to = other->data();
  }
  wait_for(engine,
           on_tensor(OpKind::allreduce, process_set, from.data(), to, from.dtype(), from.shape(),
                     static_cast<int>(PyLong_AsLong(op.ptr())), prescale, postscale),
           name, world, source, output);
  return true;
}

// The same for tensors at addresses that their framework has told.
void allreduce_at(Engine& engine, nb::handle name, int process_set, uint64_t input, uint64_t output, int dtype,
                  std::vector<uint64_t> shape, int op, double prescale, double postscale, nb::handle world,
                  nb::handle source, nb::handle target) {
  wait_for(engine,
           on_tensor(OpKind::allreduce, process_set, at(input), at(output), static_cast<Dtype>(dtype), std::move(shape),
                     op, prescale, postscale),
           name, world, source, target);
}

void barrier(Engine& engine, int process_set, nb::handle world) {
  Submission s;
  s.kind = OpKind::barrier;
  s.dtype = Dtype::uint8;
  s.process_set = process_set;
  wait_for(engine, std::move(s), nb::none(), world, nb::none(), nb::none());
}

std::shared_ptr<Handle> open_plan(Engine& engine, int process_set, std::string name, std::string text) {
  Submission s;
  s.kind = OpKind::open_plan;
  s.awaits_joined = true;  // they hold the plan, too
  s.process_set = process_set;
  s.name = std::move(name);
  s.text = std::move(text);
  return engine.submit(std::move(s));
}

std::shared_ptr<Handle> submit_bucket(Engine& engine, int process_set, int lane, uint32_t bucket, uint64_t digest,
                                      uint64_t data, uint64_t count, int dtype, int op, double prescale,
                                      double postscale, Half half, int gpu, uint64_t stream) {
  Submission s = on_tensor(OpKind::allreduce, process_set, at(data), at(data), static_cast<Dtype>(dtype), {count}, op,
                           prescale, postscale);
  s.lane = lane;
  s.bucket = bucket;
  s.plan_digest = digest;
  s.half = half;
  if (gpu >= 0) place_on_gpu(s, gpu, stream);
  nb::gil_scoped_release release;
  return engine.submit(std::move(s));
}

// Of a bucket in host memory.
void before_look(Engine& engine, int process_set, int lane, uint32_t bucket, uint64_t data, uint64_t count, int dtype) {
  Submission s =
      on_tensor(OpKind::allreduce, process_set, at(data), at(data), static_cast<Dtype>(dtype), {count}, 0, 1, 1);
  s.lane = lane;
  s.bucket = bucket;
  engine.before_look(s);
}

Membership mpi_membership(std::vector<int> ranks, uint64_t data, uint64_t control, const std::vector<int>& hosts,
                          std::shared_ptr<Host> host, std::vector<int> neighbours, std::vector<uint64_t> mail,
                          std::vector<int> sharing) {
  return {std::move(ranks),
          make_mpi_transport(data),
          make_mpi_transport(control),
          placement_on(hosts),
          {std::move(host), std::move(neighbours), std::move(mail)},
          std::move(sharing)};
}

void add_levels(Membership& set, Membership& in_host, Membership& between_hosts) {
  set.in_host = std::make_unique<Membership>(std::move(in_host));
  set.between_hosts = std::make_unique<Membership>(std::move(between_hosts));
}

nb::tuple stop_timeline(Engine& engine) {
  const auto seconds = [](Clock::time_point at) {
    return std::chrono::duration<double>(at.time_since_epoch()).count();
  };
  const Timeline::Taken taken = engine.timeline().stop();
  nb::list records;
  for (const Timeline::Record& r : taken.records) {
    nb::list row;
    row.append(r.name), row.append(name_of(r.kind)), row.append(r.process_set), row.append(r.bytes);
    for (const Clock::time_point at : {r.came.submit, r.came.agree, r.came.reduce})
      at == Clock::time_point() ? row.append(nb::none()) : row.append(seconds(at));
    row.append(seconds(r.ended));
    records.append(nb::tuple(row));
  }
  return nb::make_tuple(records, taken.lost);
}

void bind_engine(nb::module_& m) {
  nb::class_<Handle>(m, "Handle", "One operation in flight.")
      .def("poll", &Handle::completed, "True once the operation has completed or failed, on the GPU as well.")
      .def("order", &order, "stream"_a,
           "Let what this stream of a GPU does from now on come after the operation, which is done. Does not wait.")
      .def(
          "sleep",
          [](Handle& h, double seconds) {
            h.sleep_until(Deadline::in(Seconds(seconds)).end());
            return h.done();
          },
          "seconds"_a, nb::call_guard<nb::gil_scoped_release>(),
          "Sleep until done, all work being left to the engine's thread; False if the seconds passed first.")
      .def(
          "check", [](Handle& h) { h.result(); }, "Raise what went wrong, if anything did. Only after done.")
      .def("memory_in_use", &Handle::memory_in_use, "True while the engine or MPI may still use the tensors.")
      .def("stage", [](Handle& h) { return name_of(h.stage()); })
      .def("take_output", &take_output, "The output that the operation allocated, as a NumPy array of bytes.")
      .def(
          "rows", [](Handle& h) { return h.result().rows; }, "Rows of, or received from, each rank.")
      .def(
          "words", [](Handle& h) { return h.result().words; }, "The merged fields of a vote.")
      .def("lane", [](Handle& h) { return h.result().lane; }, "The lane that a plan was given.");

  nb::class_<Submission>(m, "Submission", "One named operation on one tensor, to be submitted once.")
      .def(nb::new_(&named), "kind"_a, "name"_a, "process_set"_a, "input"_a, "output"_a, "dtype"_a, "shape"_a, "op"_a,
           "prescale"_a, "postscale"_a, "root"_a, "splits"_a, "wide_dtype"_a = 0, "wide_input"_a = 0,
           "wide_output"_a = 0)
      .def_rw("room", &Submission::room, "Bytes at `output`, for all-gather and all-to-all.")
      .def("place_on_gpu", &place_on_gpu, "gpu"_a, "stream"_a,
           "The tensors lie on this GPU, and are ready when the stream has come as far as it is told now.")
      .def(
          "ask_for_output", [](Submission& s, nb::callable allocate) { s.place->allocate = asks(std::move(allocate)); },
          "allocate"_a,
          "allocate(rows) gives the address of an output on the GPU, for all-gather and all-to-all. Any thread calls "
          "it.")
      .def_rw("awaits_joined", &Submission::awaits_joined)
      .def_rw("divides_by_active", &Submission::divides_by_active);
  nb::class_<Membership>(m, "Membership", "A process set as one of its ranks sees it, to be used once.")
      .def(nb::new_(&mpi_membership), "ranks"_a, "data"_a, "control"_a, "hosts"_a, "host"_a.none(), "neighbours"_a,
           "mail"_a, "sharing"_a,
           "data, control: handles of communicators of these ranks alone; hosts: of each rank, a number of its host.")
      .def("add_levels", &add_levels, "in_host"_a, "between_hosts"_a,
           "GPU tensors go in two levels: the sets in which this rank takes their steps, both used up.");

  nb::class_<Engine>(m, "Engine", "One rank's engine thread and its communicators.")
      .def_prop_ro("rank", &Engine::rank)
      .def_prop_ro("size", &Engine::size)
      .def_prop_ro("timeout", [](Engine& e) { return e.options().timeout; })
      .def(
          "algorithm",
          [](Engine& e, uint64_t bytes, int dtype) {
            return name_of(e.chooser().choose(bytes, static_cast<Dtype>(dtype)));
          },
          "bytes"_a, "dtype"_a, "Which all-reduce a tensor takes among all ranks.")
      .def_prop_ro("checks_messages", &Engine::checks_messages,
                   "Whether what ranks send each other carries checksums (RINGDP_CHECKSUM).")
      .def(
          "casts_under_way",
          [](Engine& e, uint64_t bytes, int dtype, int process_set) {
            return e.casts_under_way(process_set, bytes, static_cast<Dtype>(dtype));
          },
          "bytes"_a, "dtype"_a, "process_set"_a = 0,
          "Whether `submit` takes a wide tensor for one of these, to cast it while it is under way.")
      .def(
          "counters",
          [](Engine& e) {
            const Counters& c = e.counters();
            nb::dict counted;
            counted["named"] = c.named.load();
            counted["buckets"] = c.buckets.load();
            counted["places"] = c.places.load();
            counted["own"] = c.own.load();
            counted["in_host"] = c.in_host.load();
            counted["votes"] = c.votes.load();
            counted["damage"] = c.damage.load();
            counted["by_nccl"] = c.by_nccl.load();
            counted["by_chunks"] = c.by_chunks.load();
            counted["by_mpi"] = c.by_mpi.load();
            counted["by_host_memory"] = c.by_host_memory.load();
            counted["by_two_levels"] = c.by_two_levels.load();
            counted["overlapped"] = c.overlapped.load();
            return counted;
          },
          "What this rank has submitted and agreed on so far: see csrc/engine/counters.h.")
      .def(
          "start_timeline", [](Engine& e, size_t most) { return e.timeline().start(most); }, "most"_a,
          "Record what is submitted from now on, so many operations at most. False if that was so already.")
      .def("stop_timeline", &stop_timeline,
           "([(name, kind, process set, bytes, submitted, agreeing, reducing, ended), …], operations lost). Times: "
           "seconds "
           "of time.monotonic(); None for a stage that an operation has not come to.")
      .def(
          "costs",
          [](Engine& e, uint64_t bytes, int dtype) {
            const Chooser& chooser = e.chooser();
            return costs(chooser.placement, bytes, static_cast<Dtype>(dtype), chooser.profile);
          },
          "bytes"_a, "dtype"_a, "[(algorithm, predicted seconds), …] of all that can run among all ranks.")
      .def("submit", &submit, "submission"_a, "It cannot be submitted again.")
      .def("submit_group", &submit_group, "submissions"_a, "layout"_a = "",
           "All are taken, or none and what is wrong is raised. layout: lines that the ranks compare, and are told of "
           "first.")
      .def("allreduce", &allreduce, "name"_a.none(), "process_set"_a, "source"_a, "output"_a, "op"_a, "prescale"_a,
           "postscale"_a, "world"_a)
      .def("allreduce_at", &allreduce_at, "name"_a.none(), "process_set"_a, "input"_a, "output"_a, "dtype"_a, "shape"_a,
           "op"_a, "prescale"_a, "postscale"_a, "world"_a, "source"_a, "target"_a)
      .def("barrier", &barrier, "process_set"_a, "world"_a, "Waits until all ranks of the set have come here.")
      .def("open_plan", &open_plan, "process_set"_a, "name"_a, "text"_a)
      .def("submit_bucket", &submit_bucket, "process_set"_a, "lane"_a, "bucket"_a, "digest"_a, "data"_a, "count"_a,
           "dtype"_a, "op"_a, "prescale"_a, "postscale"_a, "half"_a = Half::both, "gpu"_a = -1, "stream"_a = 0)
      .def_prop_ro("injects", &Engine::injects, "RINGDP_INJECT has faults for this rank.")
      .def("before_look", &before_look, "process_set"_a, "lane"_a, "bucket"_a, "data"_a, "count"_a, "dtype"_a,
           "A bucket's gradients are about to be looked at: a NaN that RINGDP_INJECT has for them is there now.")
      .def(
          "own_chunk",
          [](Engine& e, int process_set, uint64_t count, int dtype, bool on_gpu) {
            Chunk own{};
            {
              nb::gil_scoped_release release;
              own = e.own_chunk(process_set, count, static_cast<Dtype>(dtype), on_gpu);
            }
            return nb::make_tuple(own.begin, own.end);
          },
          "process_set"_a, "count"_a, "dtype"_a, "on_gpu"_a = false,
          "(begin, end) of the elements of a bucket that are this rank's own between its halves.")
      .def("vote", &Engine::vote, "process_set"_a, "lane"_a, "fields"_a)
      .def(
          "add_process_set",
          [](Engine& e, int id, Membership& membership) { e.add_process_set(id, std::move(membership)); }, "id"_a,
          "membership"_a)
      .def("is_idle", &Engine::is_idle, "process_set"_a, nb::call_guard<nb::gil_scoped_release>(),
           "True if no operation is under way in the process set.")
      .def("remove_process_set", &Engine::remove_process_set, "id"_a, nb::call_guard<nb::gil_scoped_release>(),
           "False, and nothing is done, where an operation is under way in it.")
      .def(
          "wait", &wait, "handle"_a, "seconds"_a,
          "Wait until the handle is done (GIL released), taking the engine's turns; False if the seconds passed first.")
      .def("shutdown", &Engine::shutdown, "seconds"_a, "steps"_a = 0, nb::call_guard<nb::gil_scoped_release>())
      .def("abandon", &Engine::abandon, nb::call_guard<nb::gil_scoped_release>(),
           "End at once, alone; how many messages MPI still has memory of.")
      .def("is_broken", &Engine::is_broken, "Nothing more is accepted: a process of this host has died, say.")
      .def("wait_for_end", &wait_for_end, "handle"_a,
           "Wait until the engine has ended it, as it does by its own deadlines. Raises DeadlineError if it does not.")
      .def("abort", &Engine::abort, "code"_a)
      .def("forget_after_fork", [](nb::handle self) {
        nb::cast<Engine&>(self).forget_after_fork();
        self.inc_ref();  // never destroyed: its condition variable still counts the parent's thread as waiting
        nb::set_leak_warnings(false);
      });

  m.def(
      "levels_of",
      [](const std::vector<int>& sharing, int rank) -> nb::object {
        const auto levels = levels_of(sharing, rank);
        return levels ? nb::object(nb::make_tuple(levels->mates, levels->ring)) : nb::none();
      },
      "sharing"_a, "rank"_a,
      "(the ranks that share memory with this one, those at its place on all hosts), or None where there are no two "
      "levels. sharing: by rank, a number that ranks have in common which share memory.");
  m.def(
      "numbers_of_levels",
      [](int set) { return nb::make_tuple(ProcessSet::in_host_of(set), ProcessSet::between_hosts_of(set)); }, "set"_a,
      "Of the two sets, beside the users' own, in which a process set's GPU tensors go in two levels.");
  m.def("load_mpi_unit", &load_mpi_unit, "path"_a);
  m.def(
      "mpi_takes_gpu_memory",
      []() -> std::optional<bool> {
        const TakesGpuMemory said = mpi_takes_gpu_memory();
        if (said == TakesGpuMemory::unknown) return std::nullopt;
        return said == TakesGpuMemory::yes;
      },
      "Whether this MPI takes pointers to memory of CUDA, as it says itself; None: it does not say. After "
      "load_mpi_unit.");
  m.def(
      "make_engine",
      [](uint32_t generation, Membership& everybody, std::shared_ptr<Watch> watch) {
        return std::make_unique<Engine>(options_from_environment(), generation, std::move(everybody), std::move(watch));
      },
      "generation"_a, "everybody"_a, "watch"_a.none());
  m.def(
      "wants_two_levels", [] { return options_from_environment().gpu_transport == GpuTransport::two_level; },
      "Whether RINGDP_GPU_TRANSPORT asks for them.");
  m.def(
      "expect_writes", [](uintptr_t address, size_t bytes) { expect_writes(reinterpret_cast<void*>(address), bytes); },
      "address"_a, "bytes"_a, "New memory is about to be written: fewer page faults, if it is large.");
  m.def("option_table", [] {
    nb::list rows;
    for (const OptionRow& row : option_table()) rows.append(nb::make_tuple(row.variable, row.fallback, row.help));
    return rows;
  });
}

void bind_plan(nb::module_& m) {
  m.def(
      "assign_buckets",
      [](const std::vector<uint64_t>& counts, const std::vector<int>& dtypes, uint64_t first_bytes, uint64_t bytes) {
        std::vector<PlanTensor> tensors;
        for (size_t i = 0; i < counts.size(); ++i) tensors.push_back({counts[i], static_cast<Dtype>(dtypes.at(i))});
        nb::list out;
        for (const PlanBucket& bucket : assign_buckets(tensors, first_bytes, bytes))
          out.append(nb::make_tuple(static_cast<int>(bucket.dtype), bucket.count, bucket.tensors, bucket.offsets));
        return out;
      },
      "counts"_a, "dtypes"_a, "first_bytes"_a, "bytes"_a,
      "Buckets for tensors in the given order: a list of (dtype, count, tensor indices, offsets).");
}

}  // namespace

NB_MODULE(_core, m) {
  nb::register_exception_translator(translate);
  bind_schedules(m);  // the enum Half, for a default
  bind_host(m);
  bind_guard(m);
  bind_engine(m);
  bind_local(m);
  bind_plan(m);
  bind_choice(m);
  bind_kernels(m);
  bind_gpu(m);
  bind_agreement(m);
  bind_xla(m);
}
