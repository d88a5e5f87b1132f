// From M tokens of one KV head to a record.
#pragma once

#include "record.h"

namespace ember {

// Codes [tokens, dim], one byte each, to a record.
void pack_codes(const BlockForm& form, const uint8_t* codes, uint8_t* record);

// Tokens [first, first + form.tokens) of one KV head to a record.
void encode_block(const BlockForm& form, const HeadTokens& from, int64_t first, int64_t head,
                  uint8_t* record);

}  // namespace ember
