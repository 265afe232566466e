// One request to a pool in which nothing is free; the test watches and frees it, or lets it time out.
import { client, described, model, report, tally, user } from './pool.mjs'

const began = performance.now()
try {
  const answer = await client({ maxRetries: 2 }).chat.completions.create({
    model,
    messages: user('fake: tokens@3'),
  })
  report({ attempts: tally.attempts, content: answer.choices[0].message.content, ms: performance.now() - began })
} catch (error) {
  report({ attempts: tally.attempts, error: described(error), ms: performance.now() - began })
}
