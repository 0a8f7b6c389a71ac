// How a matrix product is cut into tasks: batch, then panel groups, then row groups, the last varying fastest.
#pragma once

#include "base/tiling.h"

namespace opcel {
namespace detail {

struct GemmTask {
  std::int64_t batch, first_row, last_row, first_panel, last_panel;
  bool is_last_group;  // no other rows read this task's panels after it
};

template <int NV, class Args>
OPCEL_INLINE GemmTask gemm_task(const Args& args, std::int64_t task) {
  const std::int64_t row_groups = ceil_div(args.m, args.rows_per_task), panels = ceil_div(args.n, NV * W);
  const std::int64_t panel_groups = ceil_div(panels, args.panels_per_task), row_group = task % row_groups;
  const std::int64_t first_row = row_group * args.rows_per_task;
  const std::int64_t first_panel = task / row_groups % panel_groups * args.panels_per_task;
  return {task / row_groups / panel_groups, first_row, least(args.m, first_row + args.rows_per_task), first_panel,
          least(panels, first_panel + args.panels_per_task), row_group + 1 == row_groups};
}

}  // namespace detail

// Number of tasks. Args: batch, m, n, rows_per_task and panels_per_task, a panel being NV vectors wide.
template <int NV, class Args>
OPCEL_INLINE std::int64_t gemm_task_count(const Args& args) {
  const std::int64_t panels = detail::ceil_div(args.n, NV * W);
  return args.batch * detail::ceil_div(panels, args.panels_per_task) * detail::ceil_div(args.m, args.rows_per_task);
}

}  // namespace opcel
