// Groups of neighbours that one instruction multiplies and adds up: pairs of bf16 or quads of bytes, by the type.
#pragma once

#include "base/bf16.h"
#include "base/int8.h"

namespace opcel {

// The group at p in every lane.
OPCEL_INLINE pairs set_group(const bf16* p) { return set_pair(p); }
OPCEL_INLINE quads set_group(const std::uint8_t* p) { return set_quads(p); }

// W groups that lie one after another at p.
OPCEL_INLINE pairs load_groups(const bf16* p) { return load_pairs(p); }
OPCEL_INLINE quads load_groups(const std::int8_t* p) { return load_quads(p); }

}  // namespace opcel
